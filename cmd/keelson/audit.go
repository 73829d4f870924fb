package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/keelson-project/keelson/nodeattestor/audit"
)

const auditVerifyHelp = `Verify checks the audit log of a SPIRE server's node attestor: every line follows from the one
before it, across the files of a rotation (FILE.<number>, then FILE). It prints the head: number and
SHA-256 of the last line. Note the head elsewhere; given with --head, it also shows that nothing is
missing from the end and that nobody rewrote the whole log: the head must still be in it.

Exit 0: whole. Exit 1: a line was changed, removed, added or moved. Exit 2: wrong use, unreadable file.`

func addAudit(root *cobra.Command) {
	group := group("audit", "Work with the audit log of node attestation")
	var head string
	verify := &cobra.Command{
		Use: "verify FILE", Short: "Check that an audit log is whole and unchanged", Long: auditVerifyHelp, Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			h, seen, err := verifyAudit(args[0], head)
			if err != nil {
				return err
			}
			if head != "" && !seen {
				return refused(fmt.Errorf("the head %s is not in the log: its end was removed, or it was rewritten", head))
			}
			_, err = fmt.Fprintf(c.OutOrStdout(), "whole: %d lines, head %s\n", h.Seq, h.Hash)
			return err
		},
	}
	verify.Flags().StringVar(&head, "head", "", "SHA-256 of a line that was noted as head before")
	group.AddCommand(verify)
	root.AddCommand(group)
}

// verifyAudit verifies a log with its rotated files; seen tells whether it holds a line of that hash.
func verifyAudit(path, wanted string) (head audit.Head, seen bool, err error) {
	files, err := audit.Files(path)
	if err != nil {
		return head, false, err
	}
	head = audit.Start()
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			return head, false, err
		}
		var found bool
		head, found, err = audit.Find(f, head, wanted)
		seen = seen || found
		var broken *audit.Broken
		if errors.As(err, &broken) {
			err = refused(fmt.Errorf("%s: %w", name, err))
		}
		if err := errors.Join(err, f.Close()); err != nil {
			return head, false, err
		}
	}
	return head, seen, nil
}
