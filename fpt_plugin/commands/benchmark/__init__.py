"""Measure speed, memory and error of our functions, necks and backbones."""
