// Package serverconfig reads the server plugin's configuration: the HCL that SPIRE hands on, and every file that it names.
//
// It protects against a configuration that means something else than its writer thinks: unknown and repeated keys, values
// out of range, files that are missing, too large, of another kind or not signed are problems, all told at once, and with
// one problem nothing of it comes into force. What works but lets more in than it seems to is a warning.
package serverconfig
