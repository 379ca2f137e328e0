"""Same as ``python -m fpt_plugin publish_model``."""

from fpt_plugin.__main__ import run

if __name__ == '__main__':
    run('publish_model')
