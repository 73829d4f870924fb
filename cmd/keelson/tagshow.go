package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/keelson-project/keelson/boundedfile"
	"github.com/keelson-project/keelson/nodeattestor/assettag"
	"github.com/keelson-project/keelson/nodeattestor/tpmdev"
)

const tagShowHelp = `Say what the TPM of this machine and its tag document hold, and whether a server could believe it: NV index locked
and with a tag's attributes, its content the document's digest, the document for this TPM, within its validity and,
with --signer, signed by a key that may.

What a server adds: the TPM's own certificate of the index, the highest serial that it has seen, and its list of revoked tags.

Exit 0: nothing speaks against the tag. Exit 1: something does. Exit 2: wrong use, or what cannot be read.`

type tagShowFlags struct {
	tpmFlags
	document, index, output string
	signers                 []string
}

func showTagCommand() *cobra.Command {
	var f tagShowFlags
	c := &cobra.Command{
		Use: "show --tpm PATH --document FILE [--signer FILE]", Short: "Say what TPM and document hold, in words", Long: tagShowHelp, Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return showTag(c.Context(), c.OutOrStdout(), f, time.Now()) },
	}
	f.register(c, defaultTPM)
	c.Flags().StringVar(&f.document, "document", "", "the signed tag; without it only the TPM is asked")
	c.Flags().StringArrayVar(&f.signers, "signer", nil, "PEM file with public keys that may sign tags; may be repeated")
	indexFlag(c, &f.index)
	outputFlag(c, &f.output)
	return c
}

// tagReport is what tag show prints; as JSON, its keys are a contract.
type tagReport struct {
	Index      string   `json:"index"`
	Present    bool     `json:"present"`
	Attributes []string `json:"attributes"`
	Written    bool     `json:"written"`
	Locked     bool     `json:"locked"`
	Contents   string   `json:"contents"` // hex
	EKHashes   []string `json:"ekHashes"` // of this TPM
	// Document is null without --document.
	Document *tagDocument `json:"document"`
	// Problems are what a server would refuse the tag for.
	Problems []string `json:"problems"`
}

type tagDocument struct {
	File        string            `json:"file"`
	Digest      string            `json:"digest"` // hex
	DigestInTPM bool              `json:"digestInTPM"`
	ForThisTPM  bool              `json:"forThisTPM"`
	Serial      uint64            `json:"serial"`
	NotBefore   time.Time         `json:"notBefore"`
	NotAfter    time.Time         `json:"notAfter"`
	Tags        map[string]string `json:"tags"`
	EKHashes    []string          `json:"ekHashes"`
	KeyID       string            `json:"keyID"`
	Signature   string            `json:"signature"` // "verified", "refused" or "not checked"
}

func showTag(ctx context.Context, out io.Writer, f tagShowFlags, now time.Time) error {
	if f.output != "text" && f.output != "json" {
		return fmt.Errorf("output %q is neither text nor json", f.output)
	}
	r, err := f.report(ctx, now)
	if err != nil {
		return err
	}
	if f.output == "json" {
		err = writeJSON(out, r)
	} else {
		err = r.text(out)
	}
	if err == nil && len(r.Problems) > 0 {
		err = refused(fmt.Errorf("no server could believe this tag: %s", r.Problems[0]))
	}
	return err
}

func (f tagShowFlags) report(ctx context.Context, now time.Time) (r tagReport, err error) {
	index, err := parseIndex(f.index)
	if err != nil {
		return r, err
	}
	dev, err := f.open(ctx)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, dev.Close()) }()
	r = tagReport{Index: fmt.Sprintf("0x%08x", index), Attributes: []string{}, EKHashes: []string{}, Problems: []string{}}
	endorsements, err := dev.Endorsements(ctx)
	if err != nil {
		return r, err
	}
	for _, e := range endorsements {
		r.EKHashes = append(r.EKHashes, e.Hash.String())
	}
	held, err := dev.Tag(ctx, index)
	if err != nil && !errors.Is(err, tpmdev.ErrNoTag) {
		return r, err
	}
	r.judgeIndex(held, err == nil)
	if f.document == "" {
		return r, nil
	}
	return r, r.judgeDocument(f, now)
}

func (r *tagReport) problem(format string, args ...any) {
	r.Problems = append(r.Problems, fmt.Sprintf(format, args...))
}

func (r *tagReport) judgeIndex(held tpmdev.TagIndex, present bool) {
	r.Present = present
	if !present {
		r.problem("the TPM has no NV index %s; provision a tag", r.Index)
		return
	}
	r.Attributes, r.Written, r.Locked, r.Contents = held.Attributes, held.Written, held.Locked, hex.EncodeToString(held.Contents)
	switch {
	case held.Right:
	case !held.Written:
		r.problem("NV index %s was never written; provision the tag anew", r.Index)
	case !held.Locked:
		r.problem("NV index %s is not locked; provision the tag anew", r.Index)
	default:
		r.problem("NV index %s has other attributes, size or policy than a tag's; provision the tag anew", r.Index)
	}
}

func (r *tagReport) judgeDocument(f tagShowFlags, now time.Time) error {
	signed, err := boundedfile.Read(f.document, assettag.MaxDocumentSize)
	if err != nil {
		return err
	}
	signers, err := readSigners(f.signers)
	if err != nil {
		return err
	}
	d, keyID, err := assettag.Unverified(signed)
	if err != nil {
		return inFile(f.document, err)
	}
	digest := assettag.Digest(signed)
	doc := &tagDocument{File: f.document, Digest: hex.EncodeToString(digest[:]), Serial: d.Serial, NotBefore: d.NotBefore, NotAfter: d.NotAfter,
		Tags: d.Tags, EKHashes: d.EKHashes, KeyID: keyID, Signature: "not checked"}
	r.Document = doc
	doc.DigestInTPM = r.Contents == doc.Digest
	if r.Present && !doc.DigestInTPM {
		r.problem("the TPM holds the digest of another document")
	}
	doc.ForThisTPM = slices.ContainsFunc(r.EKHashes, func(h string) bool { return slices.Contains(d.EKHashes, h) })
	if !doc.ForThisTPM {
		r.problem("the document is for another machine: it names none of this TPM's EKs")
	}
	if now.Before(d.NotBefore) {
		r.problem("the tag is valid only from %s", stamp(d.NotBefore))
	}
	if now.After(d.NotAfter) {
		r.problem("the tag has expired at %s; rotate it", stamp(d.NotAfter))
	}
	if len(f.signers) > 0 {
		doc.Signature = "verified"
		if _, err := assettag.Open(signed, signers); err != nil {
			doc.Signature = "refused"
			r.problem("%v", err)
		}
	}
	return nil
}

func (r tagReport) text(out io.Writer) error {
	var l lines
	if !r.Present {
		l.add("NV index %s: not defined", r.Index)
	} else {
		l.add("NV index %s: %s", r.Index, strings.Join(r.Attributes, " "))
		l.fact("written", yes(r.Written))
		l.fact("locked", yes(r.Locked))
		l.fact("holds", r.Contents)
	}
	l.list("EK of this TPM: ", r.EKHashes)
	if d := r.Document; d != nil {
		l.add("document %s", d.File)
		l.fact("digest", d.Digest)
		l.fact("the TPM holds it", yes(d.DigestInTPM))
		l.fact("for this TPM", yes(d.ForThisTPM))
		l.fact("serial", fmt.Sprint(d.Serial))
		l.fact("valid", stamp(d.NotBefore)+" to "+stamp(d.NotAfter))
		l.fact("signature", d.Signature+", of key "+d.KeyID)
		for _, k := range slices.Sorted(maps.Keys(d.Tags)) {
			l.fact(k, d.Tags[k])
		}
		l.list("  EK ", d.EKHashes)
	}
	l.list("problem: ", r.Problems)
	return l.write(out)
}
