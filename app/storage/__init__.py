"""Log stores, one package a technology."""
