"""Whether a map shows what the network used."""
