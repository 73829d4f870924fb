package main

import (
	"context"
	"crypto"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/keelson-project/keelson/boundedfile"
	"github.com/keelson-project/keelson/nodeattestor/assettag"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
)

const issueHelp = `Sign an asset tag: facts about one machine (country, region, rack), bound to its TPM by the hashes of its
EKs. A server takes it only from that TPM, after "keelson tag provision" has put its digest there.

The serial must rise with every tag of a machine: servers refuse one below the highest that they have seen.`

const provisionHelp = `Write the digest of a signed asset tag into the TPM of this machine and lock it, so that the TPM can certify it.
A tag that is there is replaced. The tag must name an EK of this TPM. Needs the owner's authorisation, which is usually empty.

Install the signed document itself where the agent plugin is told to look for it.`

type issueFlags struct {
	key, out    string
	ekHashes    []string
	tags        []string
	serial      uint64
	notBefore   string
	notAfter    string
	validityFor time.Duration
}

type provisionFlags struct {
	tpmFlags
	document, index string
}

func addTag(root *cobra.Command) {
	tag := group("tag", "Work with asset tags: signed facts about a machine, bound to its TPM")
	tag.AddCommand(issueCommand(), provisionCommand(), showTagCommand(), rotateCommand(), revokeCommand())
	root.AddCommand(tag)
}

func issueCommand() *cobra.Command {
	var f issueFlags
	c := &cobra.Command{
		Use: "issue --key FILE --ek-hash HEX --tag KEY=VALUE --serial N --valid-for 8760h -o FILE", Short: "Sign an asset tag", Long: issueHelp, Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return issueTag(c.OutOrStdout(), f, time.Now()) },
	}
	f.content(c)
	c.Flags().StringArrayVar(&f.ekHashes, "ek-hash", nil, "SHA-256 of an EK's SubjectPublicKeyInfo, hex; repeat for each EK of the machine (required)")
	c.Flags().StringVarP(&f.out, "output", "o", "", "file to write, - for standard output (required)")
	return c
}

// content registers what makes a new document, whether the first or the next one of a machine.
func (f *issueFlags) content(c *cobra.Command) {
	flags := c.Flags()
	flags.StringVar(&f.key, "key", "", "PEM file with the signing key, PKCS #8, ed25519 or ECDSA P-256 (required)")
	flags.StringArrayVar(&f.tags, "tag", nil, "a fact, as country=DE; may be repeated")
	flags.Uint64Var(&f.serial, "serial", 0, "number of this tag, above all earlier ones of the machine; needed for the first, else one more than the last")
	flags.StringVar(&f.notBefore, "not-before", "", "begin of validity, as 2026-10-31T00:00:00Z (default now)")
	flags.StringVar(&f.notAfter, "not-after", "", "end of validity, as 2027-10-31T00:00:00Z")
	flags.DurationVar(&f.validityFor, "valid-for", 0, "validity from its begin on, instead of --not-after")
}

func issueTag(out io.Writer, f issueFlags, now time.Time) error {
	if f.key == "" || f.out == "" {
		return errors.New("--key and -o are required: the signing key, and the file to write")
	}
	doc, err := f.document(now)
	if err != nil {
		return err
	}
	signer, err := readSigningKey(f.key)
	if err != nil {
		return err
	}
	signed, err := assettag.Sign(doc, signer, rand.Reader)
	if err != nil {
		return err
	}
	if f.out == "-" {
		_, err = out.Write(signed)
		return err
	}
	return os.WriteFile(f.out, signed, 0o644) //nolint:gosec // a tag is no secret
}

func readSigningKey(file string) (crypto.Signer, error) {
	pem, err := boundedfile.Read(file, maxPEM)
	if err != nil {
		return nil, err
	}
	signer, err := assettag.ParseSigningKey(pem)
	if err != nil {
		return nil, inFile(file, err)
	}
	return signer, nil
}

// document is what the flags say, with every problem at once.
func (f issueFlags) document(now time.Time) (assettag.Document, error) {
	doc := assettag.Document{Tags: map[string]string{}, Serial: f.serial, NotBefore: now}
	var errs []error
	for _, t := range f.tags {
		key, value, ok := strings.Cut(t, "=")
		if _, twice := doc.Tags[key]; !ok || twice {
			errs = append(errs, fmt.Errorf("--tag %.80q: give each key once, as key=value", t))
		}
		doc.Tags[key] = value
	}
	for _, h := range f.ekHashes {
		if _, err := nodeclaim.ParseEKHash(h); err != nil {
			errs = append(errs, fmt.Errorf("--ek-hash: %w", err))
		}
		doc.EKHashes = append(doc.EKHashes, h)
	}
	var err error
	if f.notBefore != "" {
		if doc.NotBefore, err = time.Parse(time.RFC3339, f.notBefore); err != nil {
			errs = append(errs, fmt.Errorf("--not-before %.40q is not a time like 2026-10-31T00:00:00Z", f.notBefore))
		}
	}
	switch {
	case (f.notAfter == "") == (f.validityFor == 0):
		errs = append(errs, errors.New("give either --not-after or --valid-for: a tag must end"))
	case f.notAfter != "":
		if doc.NotAfter, err = time.Parse(time.RFC3339, f.notAfter); err != nil {
			errs = append(errs, fmt.Errorf("--not-after %.40q is not a time like 2027-10-31T00:00:00Z", f.notAfter))
		}
	default:
		doc.NotAfter = doc.NotBefore.Add(f.validityFor)
	}
	return doc, errors.Join(errs...)
}

func provisionCommand() *cobra.Command {
	var f provisionFlags
	c := &cobra.Command{
		Use: "provision --tpm PATH --document FILE", Short: "Write a tag's digest into this machine's TPM", Long: provisionHelp, Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return provisionTag(c.Context(), c.OutOrStdout(), f)
		},
	}
	f.register(c, defaultTPM)
	c.Flags().StringVar(&f.document, "document", "", "file that tag issue wrote (required)")
	indexFlag(c, &f.index)
	return c
}

func indexFlag(c *cobra.Command, index *string) {
	c.Flags().StringVar(index, "index", fmt.Sprintf("0x%08x", assettag.DefaultIndex), "NV index")
}

func parseIndex(text string) (uint32, error) {
	index, err := strconv.ParseUint(text, 0, 32)
	if err != nil {
		return 0, fmt.Errorf("--index %.20q is not a number like 0x%08x", text, assettag.DefaultIndex)
	}
	return uint32(index), assettag.CheckIndex(uint32(index))
}

func provisionTag(ctx context.Context, out io.Writer, f provisionFlags) (err error) {
	if f.document == "" {
		return errors.New("--document is missing: name the signed tag that tag issue wrote")
	}
	index, err := parseIndex(f.index)
	if err != nil {
		return err
	}
	signed, err := boundedfile.Read(f.document, assettag.MaxDocumentSize)
	if err != nil {
		return err
	}
	if len(signed) == 0 {
		return fmt.Errorf("%s is empty", f.document)
	}
	doc, _, err := assettag.Unverified(signed) // whether its signature counts is the servers' to say
	if err != nil {
		return inFile(f.document, err)
	}
	dev, err := f.openFor(ctx, doc.EKHashes)
	if err != nil {
		return inFile(f.document, err)
	}
	defer func() { err = errors.Join(err, dev.Close()) }()
	digest := assettag.Digest(signed)
	if err := dev.ProvisionTag(ctx, index, digest); err != nil {
		return err
	}
	_, err = fmt.Fprintf(out, "NV index 0x%08x holds sha256:%x, the digest of %s\n", index, digest, f.document)
	return err
}
