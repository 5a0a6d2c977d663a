"""Lets tools that expect a setup.py find one; every fact of the package is in pyproject.toml."""

from setuptools import setup

setup()
