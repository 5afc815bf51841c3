"""Events as self-contained pages for any browser, without a network."""
