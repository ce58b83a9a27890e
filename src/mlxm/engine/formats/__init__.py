"""What families of models make of text: thoughts, tool calls, and the rules that keep an answer to them."""
