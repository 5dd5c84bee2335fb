"""Tries any program as a persistent worker, and says what it supports and where it goes wrong."""
