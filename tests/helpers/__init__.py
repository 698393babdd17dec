"""Shared by the tests: small models, generated inputs, the commands. No test file imports another one."""
