package appraise_test

import (
	"bytes"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/keelson-project/keelson/nodeattestor/appraise"
	"github.com/keelson-project/keelson/nodeattestor/eventlog"
	"github.com/keelson-project/keelson/nodeattestor/ima"
	"github.com/keelson-project/keelson/nodeattestor/reference"
	"github.com/keelson-project/keelson/test/vectors"
)

// loaderBoot is the evidence of a boot, and the set that is captured from it.
func loaderBoot(t *testing.T, dir string) (appraise.Bundle, reference.Sets) {
	t.Helper()
	file := func(name string) []byte { return vectors.ReadFile(t, dir, name) }
	b := appraise.Bundle{
		Attest: file("quote.attest"), Signature: file("quote.sig"), AK: file("ak.tpmpub"),
		EventLog: file(vectors.EventLog), IMALog: file(vectors.IMALog), CommandLine: string(file("cmdline.txt")),
	}
	set, err := appraise.Capture("captured", b, ima.Options{})
	if err != nil {
		t.Fatal(err)
	}
	sets, err := reference.NewSets(set)
	if err != nil {
		t.Fatal(err)
	}
	return b, sets
}

// The facts of a boot are what its files say.
func TestFactsOfBootsAreThoseOfTheirFiles(t *testing.T) {
	for _, dir := range vectors.LoaderBoots() {
		t.Run(dir, func(t *testing.T) {
			want := vectors.Expect(t, dir)
			b, sets := loaderBoot(t, dir)
			out, _, refusals := appraise.Offline(b, []byte(vectors.LoaderNonce), sets, ima.Options{}, time.Now())
			if len(refusals) > 0 {
				t.Fatal(refusals)
			}
			f := out.Facts()
			fact := func(what string, got eventlog.Digest, want []string) {
				if words := []string{string(got)}; got == "" && !slices.Equal(want, []string{"absent"}) ||
					got != "" && !slices.Equal(words, want) {
					t.Errorf("%s is %q, its file is %v", what, got, want)
				}
			}
			fact("kernel", f.Kernel, want.Kernel)
			fact("initrd", f.Initrd, want.Initrd)
			if f.CommandLine.Text != want.Text || string(f.SecureBoot.State) != want.SecureBoot ||
				len(f.BootLoader) != want.Images {
				t.Errorf("command line %q, secure boot %s, %d images; want %q, %s, %d", f.CommandLine.Text,
					f.SecureBoot.State, len(f.BootLoader), want.Text, want.SecureBoot, want.Images)
			}
		})
	}
}

// No byte of a log can be another one and still be believed, unless it says nothing that counts.
func TestEveryByteOfALoadersLogIsProvenOrWithoutMeaning(t *testing.T) {
	for _, dir := range []string{"loader-boots/grub", "loader-boots/systemd-boot"} {
		b, sets := loaderBoot(t, dir)
		good, _, _ := appraise.Offline(b, []byte(vectors.LoaderNonce), sets, ima.Options{}, time.Now())
		log := b.EventLog
		for i := range log {
			b.EventLog = bytes.Clone(log)
			b.EventLog[i] ^= 0xFF
			out, _, refusals := appraise.Offline(b, []byte(vectors.LoaderNonce), sets, ima.Options{}, time.Now())
			if len(refusals) == 0 && !reflect.DeepEqual(out.Facts(), good.Facts()) {
				t.Errorf("%s: byte %d: the set accepts other facts: %+v", dir, i, out.Facts())
			}
		}
	}
}
