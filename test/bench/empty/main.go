// Command empty does nothing: it is the least that a static Go program costs to start.
package main

func main() {}
