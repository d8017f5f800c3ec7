"""From files to tokens: read, convert, render, mask, cut, keep."""
