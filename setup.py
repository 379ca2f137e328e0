"""Package metadata; needs nothing but setuptools to build."""

import os
import re
import runpy
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent

PINS = runpy.run_path(str(ROOT / 'fpt_plugin' / 'openmmlab' / 'pins.py'))

# cityscapesscripts: mmdet's metric of Cityscapes, both hosts' converters; pyarrow:
# the polygons of the quickstart's second microscope image; onnx...: what
# tools/export.py writes and compares; scikit-image: what PSNR and SSIM must equal;
# nbclient, ipykernel: docs/tutorial.ipynb.
DEV = [
    'pytest>=8', 'pytest-cov', 'pytest-xdist[psutil]', 'hypothesis', 'ruff',
    'safetensors', 'cityscapesscripts', 'pyarrow', 'onnx>=1.16',
    'onnxruntime>=1.18', 'onnxscript>=0.2', 'scikit-image', 'nbclient>=0.10',
    'ipykernel>=6.29'
]
# The guide: mkdocs.yml.
DOCS = [
    'mkdocs>=1.6', 'mkdocs-material>=9.5', 'mkdocstrings[python]>=0.26',
    'mkdocs-jupyter>=0.25'
]


def read_version() -> str:
    """Return the version without importing the package, which would import torch."""
    return runpy.run_path(str(ROOT / 'fpt_plugin' / 'version.py'))['__version__']


def read_description(url: str = os.environ.get('FPT_PLUGIN_URL', '')) -> str:
    """Return the README with links that work on a package index.

    Args:
        url: Address of the repository. Without one, links to files of the
            repository become plain text and its pictures are left out.
    """
    def mended(match):
        picture, text, target = match.groups()
        if re.match('[a-z]+:|#', target):
            return match[0]
        if not url:
            return '' if picture else text
        kind = 'raw' if picture else 'blob'
        return f'{picture}[{text}]({url.rstrip("/")}/{kind}/main/{target})'

    text = (ROOT / 'README.md').read_text(encoding='utf-8')
    return re.sub(r'(!?)\[([^\[\]]*)\]\(([^)\s]+)\)', mended, text)


def stack(name: str) -> list[str]:
    """Return what an OpenMMLab distribution and our use of it need.

    The distributions share their import names, so neither can be a hard
    requirement.
    """
    return [*PINS['REQUIREMENTS'][name].values(), *PINS['BESIDES'][name]]


class BuildWithConfigs(build_py):
    """Puts configs, tools and the model index into ``fpt_plugin/.mim``.

    That is where mmengine's ``fpt_plugin::`` configs and the command ``mim``
    look. A wheel gets copies; an editable install gets links, so that a
    changed config counts at once.
    """

    MIM_DATA = ('configs', 'tools', 'model-index.yml')

    def run(self):
        """Build the modules, then lay the data beside them."""
        super().run()
        if self.editable_mode:
            self.lay_out(ROOT / 'fpt_plugin' / '.mim', self.link)
        elif not self.dry_run:
            self.lay_out(Path(self.build_lib) / 'fpt_plugin' / '.mim', self.copy)

    def lay_out(self, folder, place):
        """Make the folder anew and place each piece in it."""
        if folder.is_symlink():
            folder.unlink()
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name in self.MIM_DATA:
            place(ROOT / name, folder / name)

    @staticmethod
    def copy(source, target):
        """Copy a file, or a folder without what Python left in it."""
        if source.is_dir():
            shutil.copytree(
                source, target, ignore=shutil.ignore_patterns('__pycache__'))
        else:
            shutil.copy(source, target)

    def link(self, source, target):
        """Link, relative so that the checkout can be moved; copy elsewhere."""
        try:
            target.symlink_to(Path('..', '..', source.name))
        except OSError:  # a file system without links
            self.copy(source, target)


setup(
    name='fpt-plugin',
    version=read_version(),
    description='Feature Pyramid Transformer necks and LambdaResNet backbones for '
    'MMDetection 3.x and MMSegmentation 1.x',
    long_description=read_description(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    packages=find_packages(include=['fpt_plugin', 'fpt_plugin.*']),
    package_data=dict(fpt_plugin=['py.typed']),
    cmdclass=dict(build_py=BuildWithConfigs),
    python_requires='>=3.9',
    install_requires=['torch>=2.1', 'numpy'],
    extras_require=dict(stock=stack('stock'), onedl=stack('onedl'), dev=DEV,
                        docs=DOCS),
    classifiers=[
        'Programming Language :: Python :: 3',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
    ],
)
