package main

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/keelson-project/keelson/boundedfile"
	"github.com/keelson-project/keelson/nodeattestor/dsse"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
	"github.com/keelson-project/keelson/nodeattestor/reference"
)

const mergeHelp = `Make one reference set of the captures of several golden nodes of one class. Where components, PCRs or
measured files differ, what any of the nodes had is allowed; the differences from the first set are told.

Nodes whose state of secure boot differs, or of which one pins what another does not, are
not of one class: keep their sets side by side.

Exit 0: written. Exit 1: a signed set is refused. Exit 2: wrong use, or sets that do not go together.`

const diffHelp = `Tell what changes from set A to set B: what an update of firmware, boot loader, kernel or files brings.
Names and signatures are not compared. Signed sets are shown without a check of who signed.

Exit 0: no difference. Exit 1: they differ. Exit 2: wrong use, or a file that cannot be read.`

const showHelp = `Show a reference set, signed or not. Without --signer a signature is not checked, and it says so.

Exit 0: shown. Exit 1: the signature is refused. Exit 2: wrong use, or a file that cannot be read.`

type mergeFlags struct {
	name, out string
	signers   []string
}

type showFlags struct {
	output  string
	signers []string
}

func mergeCommand() *cobra.Command {
	var f mergeFlags
	c := &cobra.Command{
		Use: "merge --name NAME -o FILE SET SET...", Short: "Make one set of several golden nodes of one class", Long: mergeHelp, Args: cobra.MinimumNArgs(2),
		RunE: func(c *cobra.Command, files []string) error {
			report := c.OutOrStdout()
			if f.out == "-" {
				report = c.ErrOrStderr()
			}
			return mergeReferences(c.OutOrStdout(), report, f, files)
		},
	}
	flags := c.Flags()
	flags.StringVar(&f.name, "name", "", "name of the new set (required)")
	flags.StringVarP(&f.out, "output", "o", "", "file to write, - for standard output (required)")
	flags.StringArrayVar(&f.signers, "signer", nil, signerHelp)
	return c
}

const signerHelp = "PEM file with public keys, one of which must have signed the sets; may be repeated"

func mergeReferences(out, report io.Writer, f mergeFlags, files []string) error {
	if f.name == "" || f.out == "" {
		return errors.New("--name and -o are required: the new set's name, and the file to write")
	}
	sets, err := readSets(files, f.signers)
	if err != nil {
		return err
	}
	merged, err := reference.Merge(f.name, sets...)
	if err != nil {
		return err
	}
	var l lines
	for i, s := range sets[1:] {
		changes := reference.Diff(sets[0], s)
		if len(changes) == 0 {
			l.add("%s is as %s", files[i+1], files[0])
			continue
		}
		l.add("%s differs from %s:", files[i+1], files[0])
		l.list("  ", changes)
	}
	if err := writeOut(out, f.out, merged.Marshal()); err != nil {
		return err
	}
	return l.write(report)
}

func diffCommand() *cobra.Command {
	return &cobra.Command{
		Use: "diff A B", Short: "Tell what changes from one set to another", Long: diffHelp, Args: cobra.ExactArgs(2),
		RunE: func(c *cobra.Command, files []string) error {
			a, _, err := readAnySet(files[0], nil)
			b, _, err2 := readAnySet(files[1], nil)
			if err := errors.Join(err, err2); err != nil {
				return err
			}
			changes := reference.Diff(a, b)
			if len(changes) == 0 {
				return nil
			}
			var l lines
			l.list("", changes)
			if err := l.write(c.OutOrStdout()); err != nil {
				return err
			}
			return refused(fmt.Errorf("%s and %s differ", files[0], files[1]))
		},
	}
}

func showCommand() *cobra.Command {
	var f showFlags
	c := &cobra.Command{
		Use: "show SET", Short: "Show a reference set", Long: showHelp, Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, files []string) error {
			return showReference(c.OutOrStdout(), f, files[0], time.Now())
		},
	}
	c.Flags().StringVarP(&f.output, "output", "o", "text", "text for people, or yaml: the set as it was before it was signed")
	c.Flags().StringArrayVar(&f.signers, "signer", nil, signerHelp)
	return c
}

func showReference(out io.Writer, f showFlags, file string, now time.Time) error {
	if f.output != "text" && f.output != "yaml" {
		return fmt.Errorf("--output %q: use text or yaml", f.output)
	}
	set, by, err := readAnySet(file, f.signers)
	if err != nil {
		return err
	}
	if f.output == "yaml" {
		_, err := out.Write(set.Marshal())
		return err
	}
	var l lines
	l.add("signed: %s", by)
	for _, r := range set.Valid(now) {
		l.add("not usable now: %s", r.Reason)
	}
	l.list("warning: ", set.Weaknesses())
	if w := set.KernelWarning(); w != "" {
		l.add("warning: %s", w)
	}
	l.list("", set.Describe())
	return l.write(out)
}

// readAnySet reads a set to be shown, and says who signed it. With signers, only what one of them signed is read.
func readAnySet(file string, signers []string) (reference.Set, string, error) {
	if len(signers) > 0 {
		sets, err := readSets([]string{file}, signers)
		if err != nil {
			return reference.Set{}, "", err
		}
		return sets[0], "by key " + sets[0].SignedBy() + ", verified", nil
	}
	data, err := boundedfile.Read(file, reference.MaxSignedSize)
	if err != nil {
		return reference.Set{}, "", err
	}
	if !bytes.HasPrefix(data, []byte(`{"payloadType":`)) {
		set, err := reference.ParseSet(data)
		return set, "no", inFile(file, err)
	}
	set, id, err := reference.UnverifiedSigned(data)
	return set, fmt.Sprintf("it claims by key %.64q; NOT verified, give --signer", id), inFile(file, err)
}

// readSets reads reference sets in the order of the files; with signers, only what one of them
// signed. All that is wrong in any of them is told at once; a refused signature is a refusal only
// when nothing else is wrong.
func readSets(files, signers []string) ([]reference.Set, error) {
	parse := reference.ParseSet
	if len(signers) > 0 {
		keys, err := readSigners(signers)
		if err != nil {
			return nil, err
		}
		parse = func(data []byte) (reference.Set, error) { return reference.ParseSigned(data, keys) }
	}
	var sets []reference.Set
	var errs, refusals []error
	for _, name := range files {
		data, err := boundedfile.Read(name, reference.MaxSignedSize)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		set, err := parse(data)
		switch {
		case err == nil:
			sets = append(sets, set)
		case len(nodeclaim.AsRefusals(err)) > 0:
			refusals = append(refusals, inFile(name, err))
		default:
			errs = append(errs, inFile(name, err))
		}
	}
	switch {
	case len(errs) > 0:
		return nil, errors.Join(append(errs, refusals...)...)
	case len(refusals) > 0:
		return nil, refused(errors.Join(refusals...))
	}
	return sets, nil
}

func inFile(file string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", file, err)
}

func readSigners(files []string) ([]crypto.PublicKey, error) {
	var keys []crypto.PublicKey
	for _, name := range files {
		data, err := boundedfile.Read(name, maxPEM)
		if err != nil {
			return nil, err
		}
		more, err := dsse.ParseSigners(data)
		if err != nil {
			return nil, inFile(name, err)
		}
		keys = append(keys, more...)
	}
	return keys, nil
}

func writeOut(out io.Writer, file string, data []byte) error {
	if file == "-" {
		_, err := out.Write(data)
		return err
	}
	return os.WriteFile(file, data, 0o644) //nolint:gosec // reference values are no secret
}

const signHelp = `Sign a reference set, so that a server with reference_signers takes it. The window of validity is the
set's own, or that of the flags; a signed set must end, or an old one could be put back forever.

Comments in the set's file are not kept: what is signed is what "keelson reference show -o yaml" prints.

Exit 0: written. Exit 2: wrong use, or a file that cannot be read or written.`

type signFlags struct {
	key, out, notBefore, notAfter string
	validFor                      time.Duration
}

func signCommand() *cobra.Command {
	var f signFlags
	c := &cobra.Command{
		Use: "sign --key FILE --valid-for 2160h -o FILE SET", Short: "Sign a reference set", Long: signHelp, Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, files []string) error {
			return signReference(c.OutOrStdout(), c.ErrOrStderr(), f, files[0], time.Now())
		},
	}
	flags := c.Flags()
	flags.StringVar(&f.key, "key", "", "PEM file with the signing key, PKCS #8, ed25519 or ECDSA P-256 (required)")
	flags.StringVar(&f.notBefore, "not-before", "", "begin of validity, as 2026-10-31T00:00:00Z (default the set's)")
	flags.StringVar(&f.notAfter, "not-after", "", "end of validity, as 2027-10-31T00:00:00Z (default the set's)")
	flags.DurationVar(&f.validFor, "valid-for", 0, "validity in hours, as 2160h, from its begin on, or from now, instead of --not-after")
	flags.StringVarP(&f.out, "output", "o", "", "file to write, - for standard output (required)")
	return c
}

func signReference(out, report io.Writer, f signFlags, file string, now time.Time) error {
	if f.key == "" || f.out == "" {
		return errors.New("--key and -o are required: the signing key, and the file to write")
	}
	sets, err := readSets([]string{file}, nil)
	if err != nil {
		return err
	}
	set, err := f.dated(sets[0], now)
	if err != nil {
		return err
	}
	var l lines
	if _, until := set.Validity(); !until.IsZero() && !until.After(now) {
		l.add("warning: the set ended at %s, so it accepts nothing: give a later --not-after, or --valid-for", stamp(until))
	}
	l.list("warning: ", warnings(set))
	if err := l.write(report); err != nil {
		return err
	}
	pem, err := boundedfile.Read(f.key, maxPEM)
	if err != nil {
		return err
	}
	signer, err := dsse.ParseSigningKey(pem)
	if err != nil {
		return inFile(f.key, err)
	}
	signed, err := reference.Sign(set, signer, rand.Reader)
	if err != nil {
		return err
	}
	return writeOut(out, f.out, signed)
}

// dated is the set with the window that the flags give.
func (f signFlags) dated(set reference.Set, now time.Time) (reference.Set, error) {
	from, until := set.Validity()
	var errs []error
	read := func(flag, text string, to *time.Time) {
		if text == "" {
			return
		}
		t, err := time.Parse(time.RFC3339, text)
		if err != nil {
			errs = append(errs, fmt.Errorf("--%s %.40q is not a time like 2026-10-31T00:00:00Z", flag, text))
		}
		*to = t
	}
	read("not-before", f.notBefore, &from)
	read("not-after", f.notAfter, &until)
	if f.validFor != 0 && f.notAfter != "" || f.validFor < 0 {
		errs = append(errs, errors.New("give either --not-after or a positive --valid-for"))
	}
	if f.validFor > 0 && from.IsZero() {
		from = now
	}
	if f.validFor > 0 {
		until = from.Add(f.validFor)
	}
	if err := errors.Join(errs...); err != nil {
		return reference.Set{}, err
	}
	return set.WithValidity(from, until)
}

// warnings are what a person should know of a set who signs or trusts it.
func warnings(s reference.Set) []string {
	out := s.Weaknesses()
	if w := s.KernelWarning(); w != "" {
		out = append([]string{w}, out...)
	}
	return out
}

const verifySetHelp = `Verify signed reference sets: a trusted signer signed each, and it is valid now. Warnings say where a set
pins nothing about the kernel, or rests on hashes for which collisions can be made.

Exit 0: all are good. Exit 1: one is refused: unsigned, signed by somebody else, changed, or out of its
time. Exit 2: wrong use, or a file that cannot be read.`

func verifySetCommand() *cobra.Command {
	var signers []string
	c := &cobra.Command{
		Use: "verify --signer FILE SET...", Short: "Verify signed reference sets", Long: verifySetHelp, Args: cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, files []string) error {
			return verifyReferences(c.OutOrStdout(), signers, files, time.Now())
		},
	}
	c.Flags().StringArrayVar(&signers, "signer", nil, signerHelp+" (required)")
	return c
}

func verifyReferences(out io.Writer, signers, files []string, now time.Time) error {
	if len(signers) == 0 {
		return errors.New("--signer is missing: name the PEM file of a public key that may sign reference sets")
	}
	sets, err := readSets(files, signers)
	if err != nil {
		return err
	}
	var l lines
	var untimely []error
	for i, s := range sets {
		if r := s.Valid(now); len(r) > 0 {
			untimely = append(untimely, inFile(files[i], r))
			continue
		}
		from, until := s.Validity()
		begin := ""
		if !from.IsZero() {
			begin = "from " + stamp(from) + " "
		}
		l.add("%s: set %s, signed by key %s, valid %suntil %s", files[i], s.Name(), s.SignedBy(), begin, stamp(until))
		l.list(files[i]+": warning: ", warnings(s))
	}
	if err := l.write(out); err != nil {
		return err
	}
	if len(untimely) > 0 {
		return refused(errors.Join(untimely...))
	}
	return nil
}
