package main

import (
	"context"
	"crypto"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/keelson-project/keelson/boundedfile"
	"github.com/keelson-project/keelson/nodeattestor/assettag"
)

const rotateHelp = `Replace the asset tag of this machine in one act: a new document with a higher serial is signed, its digest provisioned
over the old one, and the file replaced.

Facts and EKs are those of the old document, whose signature must be of --key or of a --signer; with --tag, the
facts given are the new ones, all of them. The old document must be for this TPM.

A machine that loses power in the middle has a document FILE.new beside the old one, and "keelson tag provision --document
FILE.new" finishes the act.`

const revokeHelp = `End a tag. With --tpm, delete the NV index of this machine's TPM: its agent has nothing to show any more. Root can put
the digest back, so tell the servers too: with --document, the tag and all earlier ones of its machine are added to the list
that servers read as tag { revoked = "FILE" }, in --list or, without it, on standard output.

Exit 0: done. Exit 1: the document is refused. Exit 2: wrong use, or what cannot be read or written.`

type rotateFlags struct {
	issueFlags
	tpmFlags
	document, index string
	signers         []string
}

func rotateCommand() *cobra.Command {
	var f rotateFlags
	c := &cobra.Command{
		Use: "rotate --key FILE --document FILE --valid-for 8760h --tpm PATH", Short: "Sign and provision the next tag in place of the old one", Long: rotateHelp, Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return rotateTag(c.Context(), c.OutOrStdout(), f, time.Now())
		},
	}
	f.register(c, defaultTPM)
	f.content(c)
	c.Flags().StringVar(&f.document, "document", "", "the tag in force, which is replaced (required)")
	c.Flags().StringArrayVar(&f.signers, "signer", nil, "PEM file with public keys that may have signed the old tag, besides --key; may be repeated")
	indexFlag(c, &f.index)
	return c
}

func rotateTag(ctx context.Context, out io.Writer, f rotateFlags, now time.Time) (err error) {
	if f.key == "" || f.document == "" {
		return errors.New("--key and --document are required: the signing key, and the tag that is replaced")
	}
	index, err := parseIndex(f.index)
	if err != nil {
		return err
	}
	signer, err := readSigningKey(f.key)
	if err != nil {
		return err
	}
	old, err := f.old(signer)
	if err != nil {
		return err
	}
	next, err := f.next(old, now)
	if err != nil {
		return err
	}
	signed, err := assettag.Sign(next, signer, rand.Reader)
	if err != nil {
		return err
	}
	dev, err := f.openFor(ctx, old.EKHashes)
	if err != nil {
		return inFile(f.document, err)
	}
	defer func() { err = errors.Join(err, dev.Close()) }()
	// The file before the TPM: what the TPM certifies is never without its document.
	staged := f.document + ".new"
	if err := boundedfile.Replace(staged, signed, 0o644); err != nil {
		return err
	}
	digest := assettag.Digest(signed)
	if err := dev.ProvisionTag(ctx, index, digest); err != nil {
		return err
	}
	if err := os.Rename(staged, f.document); err != nil {
		return err
	}
	_, err = fmt.Fprintf(out, "serial %d replaces %d: NV index 0x%08x holds sha256:%x, the digest of %s\n", next.Serial, old.Serial, index, digest, f.document)
	return err
}

// old is the tag in force, which one of the keys must have signed.
func (f rotateFlags) old(signer crypto.Signer) (assettag.Document, error) {
	signed, err := boundedfile.Read(f.document, assettag.MaxDocumentSize)
	if err != nil {
		return assettag.Document{}, err
	}
	signers, err := readSigners(f.signers)
	if err != nil {
		return assettag.Document{}, err
	}
	d, err := assettag.Open(signed, append(signers, signer.Public()))
	if err != nil {
		return d, refused(inFile(f.document, err))
	}
	return d, nil
}

// next is the tag after the old one.
func (f rotateFlags) next(old assettag.Document, now time.Time) (assettag.Document, error) {
	next, err := f.issueFlags.document(now)
	if err != nil {
		return next, err
	}
	next.EKHashes = old.EKHashes
	if len(f.tags) == 0 {
		next.Tags = old.Tags
	}
	if next.Serial == 0 {
		next.Serial = old.Serial + 1
	}
	if next.Serial <= old.Serial {
		return next, fmt.Errorf("--serial %d is not above %d, the serial of the tag in force", next.Serial, old.Serial)
	}
	return next, nil
}

type revokeFlags struct {
	tpmFlags
	document, list, reason, index string
	signers                       []string
}

func revokeCommand() *cobra.Command {
	var f revokeFlags
	c := &cobra.Command{
		Use: "revoke [--tpm PATH] [--document FILE --signer FILE --reason TEXT [--list FILE]]", Short: "Take a tag out of the TPM, and list it as revoked", Long: revokeHelp, Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return revokeTag(c.Context(), c.OutOrStdout(), f) },
	}
	f.register(c, "") // nothing is deleted without being told where
	c.Flags().StringArrayVar(&f.signers, "signer", nil, "PEM file with public keys, one of which must have signed the document; may be repeated")
	c.Flags().StringVar(&f.document, "document", "", "the tag that servers must not believe any more")
	c.Flags().StringVar(&f.reason, "reason", "", "why, for the audit log (required with --document)")
	c.Flags().StringVar(&f.list, "list", "", "the servers' list of revoked tags, which is added to; made where it is missing")
	indexFlag(c, &f.index)
	return c
}

func revokeTag(ctx context.Context, out io.Writer, f revokeFlags) error {
	if f.tpm == "" && f.document == "" {
		return errors.New("say what to revoke: --tpm deletes the tag from this machine, --document lists it for the servers")
	}
	if set := f.document != ""; set != (f.reason != "") || set != (len(f.signers) > 0) {
		return errors.New("--document, --signer and --reason belong together: which tag, who may have issued it, and why it ends")
	}
	if f.document != "" { // first, because it is what stops root
		if err := listRevoked(out, f); err != nil {
			return err
		}
	}
	if f.tpm == "" {
		return nil
	}
	return removeTag(ctx, out, f)
}

func listRevoked(out io.Writer, f revokeFlags) error {
	signed, err := boundedfile.Read(f.document, assettag.MaxDocumentSize)
	if err != nil {
		return err
	}
	signers, err := readSigners(f.signers)
	if err != nil {
		return err
	}
	d, err := assettag.Open(signed, signers) // a forged one could end the tags of other machines
	if err != nil {
		return refused(inFile(f.document, err))
	}
	all := assettag.Revocations{}
	if f.list != "" {
		data, err := boundedfile.Read(f.list, assettag.MaxRevocationsSize)
		if err == nil {
			all, err = assettag.ParseRevocations(data)
		} else if errors.Is(err, os.ErrNotExist) {
			err = nil
		}
		if err != nil {
			return inFile(f.list, err)
		}
	}
	if err := all.Revoke(d, f.reason); err != nil {
		return err
	}
	data, err := all.Marshal()
	if err != nil {
		return err
	}
	if f.list == "" {
		_, err = out.Write(data)
		return err
	}
	if err := boundedfile.Replace(f.list, data, 0o644); err != nil {
		return err
	}
	_, err = fmt.Fprintf(out, "%s: tags up to serial %d of EK %v are revoked\n", f.list, d.Serial, d.EKHashes)
	return err
}

func removeTag(ctx context.Context, out io.Writer, f revokeFlags) (err error) {
	index, err := parseIndex(f.index)
	if err != nil {
		return err
	}
	dev, err := f.open(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dev.Close()) }()
	if err := dev.RemoveTag(ctx, index); err != nil {
		return err
	}
	_, err = fmt.Fprintf(out, "NV index 0x%08x is deleted; this machine has no tag\n", index)
	return err
}
