"""One module a framework: the framework's own calls, computed by haian's operators.  Import the one you need."""
