"""``python -m fxopt``: the command line."""

from fxopt.cli import app

if __name__ == "__main__":
    app()
