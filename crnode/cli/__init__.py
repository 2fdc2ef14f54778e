"""The command line: words in, a control call, words out. No decisions live here."""
