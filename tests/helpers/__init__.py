"""Oracles, miniature data sets, base testers and other helpers of the tests."""
