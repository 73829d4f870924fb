package main

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/keelson-project/keelson/boundedfile"
	"github.com/keelson-project/keelson/nodeattestor/appraise"
	"github.com/keelson-project/keelson/nodeattestor/eventlog"
	"github.com/keelson-project/keelson/nodeattestor/ima"
	"github.com/keelson-project/keelson/nodeattestor/predict"
	"github.com/keelson-project/keelson/nodeattestor/reference"
)

const predictHelp = `Compute from files what machines will measure when they next boot, and make a reference set of it: load it beside the set in force,
then reboot the nodes.

--dir is the evidence of a golden node as it boots now, as for "keelson reference capture". Firmware and platform are taken from it, and
its quote must prove it; what is measured of the files below takes the place of what that node booted. With --set, the new set is that
captured set, as it was edited, with the prediction's values; without, a set is captured from --dir first.

Say what will be booted, in one of three ways:
  a unified kernel image    --uki FILE, with --loader FILE for each image that runs before it, in order (shim, systemd-boot)
  systemd-boot and a kernel --kernel FILE --initrd FILE... --command-line TEXT, with --loader FILE...; TEXT as /proc/cmdline will show it
  GRUB                      --replace OLD=NEW for each file that it reads or that is started (kernel, initrd, grub.cfg, shim, GRUB).
                            A grub.cfg is interpreted; where it cannot be, the line is named. Beside it say then
                            --grub-text OLD=NEW for each text that changes in GRUB's commands (a version in paths, a word of the command line)
In these pairs write OLD==>NEW where a text or a path has an equals sign: --grub-text 'ima_hash=sha1==>ima_hash=sha256'.
The old grub.cfg must explain all that the golden node measured, and the new one may ask only what that boot answers: GRUB's environment
block, what its modules set, which files are there. All else is taken to stay as the golden node measured it.
With or without these, --dbx or --dbx-update say what dbx becomes (PCR 7). Apply that update by itself first, or give both.

What cannot be predicted is named on standard error and is not pinned. To see whether the method fits your machines, run it with the
files that the golden node booted, and --check DIR with the same folder; after the first node's reboot, with that node's evidence.
With --check no set is written unless -o is given.

Exit 0: written, or the boot is as predicted. Exit 1: the evidence is refused, or the boot of --check is another. Exit 2: wrong use, or
something that cannot be predicted or read.`

type predictFlags struct {
	captureFlags

	set, check, log           string
	uki, loadOptions, kernel  string
	commandLine               string
	dbx, dbxUpdate            string
	extraDir, loaderDir       string
	loaders, initrds          []string
	replace, grubText, allows []string
	profile                   int
}

func predictCommand() *cobra.Command {
	var f predictFlags
	c := &cobra.Command{
		Use:  "predict --dir DIR --name NAME -o FILE [--uki FILE | --kernel FILE ... | --replace OLD=NEW ...]",
		Long: predictHelp, Args: cobra.NoArgs,
		Short: "Make a reference set of what machines will measure after an update, before they reboot",
		RunE: func(c *cobra.Command, _ []string) error {
			return predictReference(c.OutOrStdout(), c.ErrOrStderr(), f)
		},
	}
	flags := c.Flags()
	flags.StringVar(&f.dir, "dir", "", "folder with a golden node's evidence, of its boot before the update (required)")
	flags.StringVar(&f.set, "set", "",
		"captured set of that boot which the new one is made from (default one is captured)")
	flags.StringVar(&f.name, "name", "", "name of the new set (required with -o)")
	flags.StringVarP(&f.out, "output", "o", "", "file to write, - for standard output (required without --check)")
	flags.StringVar(&f.check, "check", "",
		"folder with the evidence of a boot of the given files, which is compared with the prediction")
	flags.StringVar(&f.log, "event-log", "",
		"file for the event log that is predicted, to look at with \"keelson eventlog show\"")
	flags.StringVar(&f.uki, "uki", "", "unified kernel image")
	flags.IntVar(&f.profile, "profile", 0,
		"number of the profile that is booted, in a unified kernel image with several")
	flags.StringVar(&f.loadOptions, "load-options", "",
		"command line that loader or boot entry pass to the unified kernel image")
	flags.StringVar(&f.extraDir, "extra-dir", "",
		"folder NAME.efi.extra.d beside the unified kernel image: add-ons, credentials, extensions")
	flags.StringVar(&f.loaderDir, "loader-dir", "",
		"folder loader of the boot partition, with addons, credentials and extensions")
	flags.StringArrayVar(&f.loaders, "loader", nil,
		"image that runs before the kernel or unified kernel image; repeat in the order in which they start")
	flags.StringVar(&f.kernel, "kernel", "", "kernel")
	flags.StringArrayVar(&f.initrds, "initrd", nil, "initrd; repeat in the order of the entry")
	flags.StringVar(&f.commandLine, "command-line", "",
		"whole kernel command line, with \"initrd=\" as systemd-boot puts it there")
	flags.StringArrayVar(&f.replace, "replace", nil, "OLD=NEW: files; with GRUB, may be repeated")
	flags.StringArrayVar(&f.grubText, "grub-text", nil,
		"OLD=NEW: texts in GRUB's commands and the command line, may be repeated")
	flags.StringVar(&f.dbx, "dbx", "",
		"file with the whole dbx variable after the update, as in /sys/firmware/efi/efivars")
	flags.StringVar(&f.dbxUpdate, "dbx-update", "", "file with an update that is appended to dbx (DBXUpdate.bin)")
	flags.StringArrayVar(&f.allows, "file", nil,
		"PATH=FILE: a file that will be measured by IMA under PATH is allowed besides, may be repeated")
	flags.BoolVar(&f.padded, "ima-padded-sha1", false,
		"the kernel is older than 5.8 and extends every bank with SHA-1 (weak)")
	flags.StringArrayVar(&f.keys, "ima-key", nil, "as for \"keelson reference capture\", where a set is captured")
	osExtendedFlag(c, &f.osExtended)
	return c
}

func (f predictFlags) validate() error {
	ways := 0
	for _, given := range []bool{f.uki != "", f.kernel != "", len(f.replace)+len(f.grubText) > 0} {
		if given {
			ways++
		}
	}
	switch {
	case f.dir == "":
		return errors.New("--dir is missing: name the folder with the golden node's evidence")
	case f.out == "" && f.check == "":
		return errors.New("-o is missing: name the file to write, or - for standard output")
	case f.out != "" && f.name == "":
		return errors.New("--name is missing: give the new set a name")
	case ways > 1:
		return errors.New("--uki, --kernel and --replace with --grub-text exclude each other: say one way to boot")
	case ways == 0 && f.dbx == "" && f.dbxUpdate == "":
		return errors.New("nothing is updated: give --uki, --kernel, --replace, --grub-text, --dbx or --dbx-update")
	case f.uki == "" && (f.profile != 0 || f.loadOptions != "" || f.extraDir != "" || f.loaderDir != ""):
		return errors.New("--profile, --load-options, --extra-dir and --loader-dir go with --uki")
	case f.kernel == "" && (len(f.initrds) > 0 || f.commandLine != ""):
		return errors.New("--initrd and --command-line go with --kernel; with GRUB, say what changes with --replace")
	case f.uki == "" && f.kernel == "" && len(f.loaders) > 0:
		return errors.New("--loader goes with --uki or --kernel; with GRUB, say what changes with --replace")
	case f.dbx != "" && f.dbxUpdate != "":
		return errors.New("--dbx and --dbx-update exclude each other")
	case f.profile < 0:
		return fmt.Errorf("--profile %d: profiles are numbered from 0", f.profile)
	}
	return nil
}

func predictReference(out, report io.Writer, f predictFlags) error {
	if err := f.validate(); err != nil {
		return err
	}
	captured, err := f.captured()
	if err != nil {
		return err
	}
	base, err := f.base(f.dir, captured)
	if err != nil {
		return inFile(f.dir, err)
	}
	changes, err := f.changes()
	if err != nil {
		return err
	}
	p, err := base.Predict(changes...)
	if err != nil {
		return err
	}
	var l lines
	l.list("", p.Describe())
	l.list("note: ", p.Notes)
	if f.log != "" {
		if err := writeOut(out, f.log, p.Log); err != nil {
			return err
		}
	}
	if f.out != "" {
		files, err := f.allowed()
		if err != nil {
			return err
		}
		set, notes, err := p.Set(captured, f.name, files)
		if err != nil {
			return errors.Join(err, l.write(report))
		}
		l.list("warning: ", notes)
		if err := writeOut(out, f.out, set.Marshal()); err != nil {
			return err
		}
	}
	if err := l.write(report); err != nil || f.check == "" {
		return err
	}
	return f.compare(report, p, captured)
}

// captured is the set of the boot before.
func (f predictFlags) captured() (reference.Set, error) {
	bundle, err := readBundle(f.dir, f.osExtended)
	if err != nil {
		return reference.Set{}, err
	}
	keys, err := readIMAKeys(f.keys)
	if err != nil {
		return reference.Set{}, err
	}
	// A set is captured in any case: only evidence that its quote proves makes one.
	set, err := appraise.CaptureUnpinned("before", bundle, ima.Options{PaddedSHA1: f.padded}, keys...)
	if err != nil {
		return reference.Set{}, refused(fmt.Errorf("capture from %s: %w", f.dir, err))
	}
	if f.set == "" {
		return set, nil
	}
	sets, err := readSets([]string{f.set}, nil)
	if err != nil {
		return reference.Set{}, err
	}
	return sets[0], nil
}

// base reads the log of a boot in a set's bank.
func (f predictFlags) base(dir string, set reference.Set) (predict.Base, error) {
	bundle, err := readBundle(dir, f.osExtended)
	if err != nil {
		return predict.Base{}, err
	}
	log, err := eventlog.Parse(bundle.EventLog)
	if err != nil {
		return predict.Base{}, err
	}
	return predict.NewBase(log, set.Bank())
}

// compare holds the prediction against another boot, whose quote must prove its log.
func (f predictFlags) compare(report io.Writer, p predict.Prediction, captured reference.Set) error {
	bundle, err := readBundle(f.check, f.osExtended)
	if err != nil {
		return err
	}
	if _, err := appraise.CaptureUnpinned("checked", bundle, ima.Options{PaddedSHA1: f.padded}); err != nil {
		return refused(inFile(f.check, err))
	}
	boot, err := f.base(f.check, captured)
	if err != nil {
		return inFile(f.check, err)
	}
	differences, err := p.Compare(boot)
	if err != nil {
		return inFile(f.check, err)
	}
	var l lines
	for _, d := range differences {
		l.add("%s: %s", f.check, d)
	}
	if len(differences) == 0 {
		l.add("%s: measured as predicted", f.check)
	}
	if err := l.write(report); err != nil {
		return err
	}
	if len(differences) > 0 {
		return refused(fmt.Errorf("the boot in %s is not the predicted one", f.check))
	}
	return nil
}

// changes reads the files.
func (f predictFlags) changes() ([]predict.Change, error) {
	r := &fileReader{}
	var out []predict.Change
	switch {
	case f.uki != "":
		out = append(out, predict.UKI{
			Loaders: r.images(f.loaders), Image: r.image(f.uki), Profile: f.profile, LoadOptions: f.loadOptions,
			Own: r.own(f.extraDir), Global: r.global(f.loaderDir),
		})
	case f.kernel != "":
		out = append(out, predict.Linux{Loaders: r.images(f.loaders), Kernel: r.image(f.kernel),
			Initrds: r.images(f.initrds), CommandLine: f.commandLine})
	case len(f.replace)+len(f.grubText) > 0:
		g := predict.GRUB{}
		for _, pair := range f.replace {
			if before, after, ok := r.pair("--replace", pair); ok {
				g.Files = append(g.Files, predict.Replacement{Old: r.image(before), New: r.image(after)})
			}
		}
		for _, pair := range f.grubText {
			if before, after, ok := r.pair("--grub-text", pair); ok {
				g.Texts = append(g.Texts, predict.Substitution{Old: before, New: after})
			}
		}
		out = append(out, g)
	}
	switch {
	case f.dbx != "":
		out = append(out, predict.DBX{Content: r.file(f.dbx, predict.MaxDBX)})
	case f.dbxUpdate != "":
		out = append(out, predict.DBX{Update: r.file(f.dbxUpdate, predict.MaxDBX)})
	}
	return out, errors.Join(r.errs...)
}

// allowed are the digests of files that IMA will measure.
func (f predictFlags) allowed() (map[string][]string, error) {
	r := &fileReader{}
	out := map[string][]string{}
	for _, pair := range f.allows {
		if path, name, ok := r.pair("--file", pair); ok {
			out[path] = append(out[path], fmt.Sprintf("sha256:%x", sha256.Sum256(r.file(name, predict.MaxImage))))
		}
	}
	return out, errors.Join(r.errs...)
}

// fileReader reads files and keeps all that goes wrong.
type fileReader struct{ errs []error }

func (r *fileReader) file(name string, limit int64) []byte {
	data, err := boundedfile.Read(name, limit)
	if err != nil {
		r.errs = append(r.errs, err)
	}
	return data
}

func (r *fileReader) image(name string) predict.File {
	return predict.File{Name: name, Data: r.file(name, predict.MaxImage)}
}

func (r *fileReader) images(names []string) []predict.File {
	var out []predict.File
	for _, n := range names {
		out = append(out, r.image(n))
	}
	return out
}

// pair splits OLD=NEW at its only "=", or OLD==>NEW at its only arrow.
func (r *fileReader) pair(flag, text string) (before, after string, ok bool) {
	sep := "="
	if strings.Contains(text, "==>") {
		sep = "==>"
	}
	before, after, ok = strings.Cut(text, sep)
	if !ok || before == "" || strings.Contains(after, sep) {
		r.errs = append(r.errs, fmt.Errorf("%s %.80q: give OLD=NEW, or OLD==>NEW where one of them has an equals sign", flag,
			text))
		return "", "", false
	}
	return before, after, true
}

// own reads the folder beside a unified kernel image.
func (r *fileReader) own(dir string) predict.Extras {
	if dir == "" {
		return predict.Extras{}
	}
	return r.extras(r.entries(dir, false), r.entries(dir, false), r.entries(dir, false))
}

// global reads what lies in the folder loader of the boot partition; each of its folders may be
// absent.
func (r *fileReader) global(dir string) predict.Extras {
	if dir == "" {
		return predict.Extras{}
	}
	folder := func(name string) []string { return r.entries(filepath.Join(dir, name), true) }
	return r.extras(folder("addons"), folder("credentials"), folder("extensions"))
}

// extras reads the files of each kind from folders.
func (r *fileReader) extras(addons, credentials, extensions []string) predict.Extras {
	return predict.Extras{
		Addons: r.chosen(addons, ".addon.efi", ""), Credentials: r.chosen(credentials, ".cred", ""),
		Extensions: r.chosen(extensions, ".raw", ".confext.raw"), Configs: r.chosen(extensions, ".confext.raw", ""),
	}
}

// entries lists the files of a folder.
func (r *fileReader) entries(dir string, optional bool) []string {
	entries, err := os.ReadDir(dir)
	if optional && errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		r.errs = append(r.errs, err)
	}
	var out []string
	for _, e := range entries {
		if !e.IsDir() {
			out = append(out, filepath.Join(dir, e.Name()))
		}
	}
	return out
}

// chosen reads the files whose names end in a suffix, in any case of letters, and do not begin with
// a dot, as systemd-stub does.
func (r *fileReader) chosen(paths []string, suffix, but string) map[string][]byte {
	out := map[string][]byte{}
	for _, path := range paths {
		name := strings.ToLower(filepath.Base(path))
		if name[0] == '.' || !strings.HasSuffix(name, suffix) || but != "" && strings.HasSuffix(name, but) {
			continue
		}
		out[filepath.Base(path)] = r.file(path, predict.MaxImage)
	}
	return out
}
