"""Measure speed, memory and error of functions, necks and backbones."""
