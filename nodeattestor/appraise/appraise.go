// Package appraise composes the log half of an appraisal: event log replay, facts, IMA
// result and reference values, in the order of the protocol (nodeattestor/doc.go).
//
// It is pure, so that the SPIRE server plugin and the command line decide alike. It
// reads no file, asks no clock and trusts nothing that no quote covers.
package appraise
