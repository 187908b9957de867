"""One file for each method; the file name is the method's name in a config."""
