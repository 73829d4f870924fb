package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/keelson-project/keelson/nodeattestor/audit"
)

const auditVerifyHelp = `Verify checks the audit log of a SPIRE server's node attestor: every line follows from the one
before it, across the files of a rotation (FILE.<number>, then FILE). It prints the head: number and
SHA-256 of the last line. Note the head elsewhere; given with --head, it also shows that nothing is
missing from the end and that nobody rewrote the whole log: the head must still be in it. A log whose oldest files the server
pruned (audit_max_files) is whole where its own entries say so; note a head more often than files are pruned.

Exit 0: whole. Exit 1: a line was changed, removed, added or moved. Exit 2: wrong use, unreadable file.`

func addAudit(root *cobra.Command) {
	group := group("audit", "Work with the audit log of node attestation")
	var head string
	verify := &cobra.Command{
		Use: "verify FILE", Short: "Check that an audit log is whole and unchanged", Long: auditVerifyHelp, Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			s, err := audit.VerifyLog(args[0], head)
			if errors.As(err, new(*audit.Broken)) {
				return refused(err)
			}
			if err != nil {
				return err
			}
			if head != "" && !s.Found {
				return refused(fmt.Errorf("the head %s is not in the log: %s", head, whyMissing(s)))
			}
			if s.First > 1 {
				_, err = fmt.Fprintf(c.OutOrStdout(), "whole: lines %d to %d, head %s; the server pruned those before\n", s.First, s.Head.Seq, s.Head.Hash)
				return err
			}
			_, err = fmt.Fprintf(c.OutOrStdout(), "whole: %d lines, head %s\n", s.Head.Seq, s.Head.Hash)
			return err
		},
	}
	verify.Flags().StringVar(&head, "head", "", "SHA-256 of a line that was noted as head before")
	group.AddCommand(verify)
	root.AddCommand(group)
}

func whyMissing(s audit.Summary) string {
	if s.First > 1 {
		return fmt.Sprintf("its end was removed, it was rewritten, or that line is among the %d that the server pruned", s.First-1)
	}
	return "its end was removed, or it was rewritten"
}
