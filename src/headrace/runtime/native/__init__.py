"""The native library of host attention: C++ sources, how they are built, how they are loaded."""
