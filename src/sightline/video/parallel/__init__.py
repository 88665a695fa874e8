"""One video on several cards: Ulysses over the tokens, guidance branches on two groups, decoding by rows."""
