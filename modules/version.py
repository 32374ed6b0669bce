"""The version of this code: in every answer, of the package, and of what a batch was begun with."""

VERSION = "0.1.0"
