package main

import (
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/keelson-project/keelson/boundedfile"
	"github.com/keelson-project/keelson/nodeattestor/appraise"
	"github.com/keelson-project/keelson/nodeattestor/ima"
	"github.com/keelson-project/keelson/nodeattestor/imasig"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
)

const captureHelp = `Make a reference set from the evidence of a golden node: a machine that is known to be as it should be.

The folder is as for "keelson evidence verify". Its quote must cover what its logs lead to; the quote's
own nonce is taken as it stands, because a reference set says what was good, not when. The set
pins the boot's components (firmware, secure boot, boot loader, kernel, initrd, command line) as far as something
measured them, and says on standard error which are absent and what would measure them. A set that would pin nothing about
the kernel, so that any kernel passes, is refused unless --allow-unpinned-kernel asks for it; it then says so itself. It pins the
PCRs that are stable on a healthy machine, and every measured file; with --ima-key those that the key
signed (IMA signatures, security.ima) are allowed as such, whatever their digest. Read it before you trust it.

Exit 0: written. Exit 1: the evidence is refused. Exit 2: wrong use, or a file that cannot be read or written.`

type captureFlags struct {
	dir, name, out string
	padded         bool
	unpinned       bool
	osExtended     []int
	keys           []string
}

func addReference(root *cobra.Command) {
	ref := group("reference", "Work with reference sets: what a good machine has measured")
	var f captureFlags
	capture := &cobra.Command{
		Use: "capture --dir DIR --name NAME -o FILE", Short: "Make a reference set from a golden node's evidence", Long: captureHelp, Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			set, err := captureReference(c.ErrOrStderr(), f)
			if err != nil {
				return err
			}
			return writeOut(c.OutOrStdout(), f.out, set)
		},
	}
	flags := capture.Flags()
	flags.StringVar(&f.dir, "dir", "", "folder with the golden node's evidence (required)")
	flags.StringVar(&f.name, "name", "", "name of the set, as in \"prod-2026-10\" (required)")
	flags.StringVarP(&f.out, "output", "o", "", "file to write, - for standard output (required)")
	flags.BoolVar(&f.padded, "ima-padded-sha1", false, "the kernel is older than 5.8 and extends every bank with SHA-1 (weak)")
	flags.BoolVar(&f.unpinned, "allow-unpinned-kernel", false, "make a set that pins nothing about the kernel, where nothing measured it: any kernel then passes")
	osExtendedFlag(capture, &f.osExtended)
	flags.StringArrayVar(&f.keys, "ima-key", nil, "PEM file with a public key or X.509 certificate whose signed files are allowed; may be repeated")
	ref.AddCommand(capture, predictCommand(), mergeCommand(), diffCommand(), signCommand(), verifySetCommand(), showCommand())
	root.AddCommand(ref)
}

func captureReference(report io.Writer, f captureFlags) ([]byte, error) {
	switch {
	case f.dir == "":
		return nil, errors.New("--dir is missing: name the folder with the golden node's evidence")
	case f.name == "":
		return nil, errors.New("--name is missing: give the set a name")
	case f.out == "":
		return nil, errors.New("-o is missing: name the file to write, or - for standard output")
	}
	bundle, err := readBundle(f.dir, f.osExtended)
	if err != nil {
		return nil, err
	}
	keys, err := readIMAKeys(f.keys)
	if err != nil {
		return nil, err
	}
	opt, capture := ima.Options{PaddedSHA1: f.padded}, appraise.Capture
	if f.unpinned {
		capture = appraise.CaptureUnpinned
	}
	var l lines
	l.list("warning: ", appraise.Absent(bundle, opt))
	l.list("warning: ", appraise.Gaps(bundle, opt))
	set, err := capture(f.name, bundle, opt, keys...)
	if w := set.KernelWarning(); err == nil && w != "" {
		l.add("warning: set %s: %s", f.name, w)
	}
	if err := l.write(report); err != nil {
		return nil, err
	}
	if err != nil {
		err = fmt.Errorf("capture from %s: %w", f.dir, err)
		if len(nodeclaim.AsRefusals(err)) > 0 {
			return nil, refused(err)
		}
		return nil, err
	}
	return set.Marshal(), nil
}

func readIMAKeys(files []string) ([]imasig.Key, error) {
	var keys []imasig.Key
	for _, name := range files {
		data, err := boundedfile.Read(name, maxPEM)
		if err != nil {
			return nil, err
		}
		k, err := imasig.ParseKey(data)
		if err != nil {
			return nil, inFile(name, err)
		}
		keys = append(keys, k)
	}
	return keys, nil
}
