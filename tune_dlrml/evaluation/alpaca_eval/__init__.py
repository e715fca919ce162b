"""AlpacaEval: annotations, win rates, and the comparison through our judges."""
