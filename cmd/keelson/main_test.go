package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport/linuxudstpm"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/keelson-project/keelson/nodeattestor/assettag"
	"github.com/keelson-project/keelson/nodeattestor/tpmdev"
	"github.com/keelson-project/keelson/test/tpmtest"
	"github.com/keelson-project/keelson/test/vectors"
)

// TestMain makes the real main a command of the scripts.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"keelson": main})
}

// boots is the folder of the measured boots.
func boots(t testing.TB) string {
	t.Helper()
	dir, err := filepath.Abs("../../test/vectors/measured-boots")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(e *testscript.Env) error {
			e.Setenv("BOOTS", boots(t))
			layouts, err := filepath.Abs("testdata/layouts")
			if err != nil {
				return err
			}
			e.Setenv("LAYOUTS", layouts)
			e.Setenv("NONCE", "fixed-test-nonce-0001")
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exit":    exitCode,
			"copydir": copyDir,
			"cut":     cutFile,
		},
		RequireExplicitExec: true,
	})
}

// exitCode is "exit CODE args...": keelson must end with that code. Scripts alone tell only failure.
func exitCode(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 {
		ts.Fatalf("usage: exit CODE args...")
	}
	var out, errs bytes.Buffer
	for i := range args {
		if strings.HasPrefix(args[i], "@") { // a file of the script's folder
			args[i] = ts.MkAbs(args[i][1:])
		}
	}
	code := run(args[1:], &out, &errs)
	if _, err := ts.Stdout().Write(out.Bytes()); err != nil {
		ts.Fatalf("%v", err)
	}
	if _, err := ts.Stderr().Write(errs.Bytes()); err != nil {
		ts.Fatalf("%v", err)
	}
	if want := args[0]; want != string(rune('0'+code)) {
		ts.Fatalf("keelson %q: exit %d, want %s\n%s", args[1:], code, want, errs.String())
	}
}

// copyDir is "copydir FROM TO": a copy of all files in a folder.
func copyDir(ts *testscript.TestScript, _ bool, args []string) {
	if err := os.CopyFS(ts.MkAbs(args[1]), os.DirFS(args[0])); err != nil {
		ts.Fatalf("%v", err)
	}
}

// cutFile is "cut FILE BYTES": takes that many bytes off the end of a file.
func cutFile(ts *testscript.TestScript, _ bool, args []string) {
	name := ts.MkAbs(args[0])
	n, err := strconv.Atoi(args[1])
	ts.Check(err)
	data, err := os.ReadFile(name)
	ts.Check(err)
	ts.Check(os.WriteFile(name, data[:len(data)-n], 0o600))
}

// holdsTag is "holdstag FILE": the TPM's index holds the digest of the file.
func holdsTag(ts *testscript.TestScript, neg bool, args []string) {
	signed, err := os.ReadFile(ts.MkAbs(args[0]))
	ts.Check(err)
	dev, err := tpmdev.Open(ts.Getenv("TPM"))
	ts.Check(err)
	tag, err := dev.Tag(context.Background(), assettag.DefaultIndex)
	ts.Check(errors.Join(err, dev.Close()))
	want := assettag.Digest(signed)
	if bytes.Equal(tag.Contents, want[:]) == neg {
		ts.Fatalf("the TPM holds %x, the document's digest is %x", tag.Contents, want)
	}
}

// storeNV is "storenv INDEX TEXT": a TPM's maker writes an NV index.
func storeNV(ts *testscript.TestScript, _ bool, args []string) {
	index, err := strconv.ParseUint(args[0], 0, 32)
	ts.Check(err)
	ts.Check(tpmtest.StoreNV(ts.Getenv("TPM"), uint32(index), []byte(args[1])))
}

// unlockTag is "unlocktag FILE": root puts the file's digest into an index that it does not lock.
func unlockTag(ts *testscript.TestScript, _ bool, args []string) {
	signed, err := os.ReadFile(ts.MkAbs(args[0]))
	ts.Check(err)
	tpm, err := linuxudstpm.Open(ts.Getenv("TPM"))
	ts.Check(err)
	owner := tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)}
	const index = assettag.DefaultIndex
	old, err := tpm2.NVReadPublic{NVIndex: tpm2.TPMHandle(index)}.Execute(tpm)
	ts.Check(err)
	_, err = tpm2.NVUndefineSpace{AuthHandle: owner, NVIndex: tpm2.NamedHandle{Handle: tpm2.TPMHandle(index), Name: old.NVName}}.Execute(tpm)
	ts.Check(err)
	area := assettag.NVPublic(index, assettag.NVDefined)
	_, err = tpm2.NVDefineSpace{AuthHandle: owner, PublicInfo: tpm2.New2B(area)}.Execute(tpm)
	ts.Check(err)
	name, err := tpm2.NVName(&area)
	ts.Check(err)
	digest := assettag.Digest(signed)
	_, err = tpm2.NVWrite{AuthHandle: owner, NVIndex: tpm2.NamedHandle{Handle: tpm2.TPMHandle(index), Name: *name}, Data: tpm2.TPM2BMaxNVBuffer{Buffer: digest[:]}}.Execute(tpm)
	ts.Check(errors.Join(err, tpm.Close()))
}

// tpmEnv gives a script a manufactured TPM that has booted the recorded boot "good": its socket, the hash of
// its ECC EK, and its maker's root in roots/root.pem.
func tpmEnv(t *testing.T) func(*testscript.Env) error {
	return func(e *testscript.Env) error {
		path := tpmtest.Start(t)
		ca, err := tpmtest.NewCA()
		if err != nil {
			return err
		}
		if err := tpmtest.Manufacture(t.Context(), path, ca); err != nil {
			return err
		}
		boot, err := tpmtest.ParseBoot(vectors.Read(t, "good", vectors.EventLog), vectors.Read(t, "good", vectors.IMALog))
		if err != nil {
			return err
		}
		dev, err := tpmdev.Open(path)
		if err != nil {
			return err
		}
		endorsements, err := dev.Endorsements(t.Context())
		if err := errors.Join(err, tpmtest.Replay(t.Context(), dev, boot), dev.Close()); err != nil {
			return err
		}
		e.Setenv("TPM", path)
		e.Setenv("EK", endorsements[0].Hash.String())
		e.Setenv("BOOTS", boots(t))
		if err := os.Mkdir(filepath.Join(e.WorkDir, "roots"), 0o700); err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(e.WorkDir, "roots", "root.pem"), ca.RootPEM(), 0o600)
	}
}

// attestTo is "attestto DIR": the agent's attestation key is made in DIR.
func attestTo(ts *testscript.TestScript, _ bool, args []string) {
	dev, err := tpmdev.Open(ts.Getenv("TPM"))
	ts.Check(err)
	_, err = dev.AK(context.Background(), ts.MkAbs(args[0]))
	ts.Check(errors.Join(err, dev.Close()))
}

// On a real TPM that booted a recorded boot, what the commands show and collect.
func TestTPMScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/tpm",
		Setup:               tpmEnv(t),
		Cmds:                map[string]func(*testscript.TestScript, bool, []string){"exit": exitCode, "attestto": attestTo, "cut": cutFile, "storenv": storeNV},
		RequireExplicitExec: true,
	})
}

func TestTagScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/tag",
		Setup:               tpmEnv(t),
		Cmds:                map[string]func(*testscript.TestScript, bool, []string){"exit": exitCode, "holdstag": holdsTag, "unlocktag": unlockTag},
		RequireExplicitExec: true,
	})
}

// report as programs read it.
type readReport struct {
	Verdict   string
	Reference *string
	Refusals  []struct{ Check, Reason string }
	Facts     map[string]any
	PCRs      map[string]map[string]string
}

func verifyJSON(t *testing.T, code int, args ...string) readReport {
	t.Helper()
	var out, errs bytes.Buffer
	if got := run(append([]string{"evidence", "verify", "--nonce", "fixed-test-nonce-0001", "-o", "json"}, args...), &out, &errs); got != code {
		t.Fatalf("exit %d, want %d: %s", got, code, errs.String())
	}
	dec := json.NewDecoder(&out)
	dec.DisallowUnknownFields()
	var r readReport
	if err := dec.Decode(&r); err != nil {
		t.Fatal(err)
	}
	return r
}

func TestJSONReportKeepsItsContract(t *testing.T) {
	set := filepath.Join(t.TempDir(), "good.yaml")
	if code := run([]string{"reference", "capture", "--dir", filepath.Join(boots(t), "good"), "--name", "good", "-o", set}, os.Stdout, os.Stderr); code != 0 {
		t.Fatalf("capture: exit %d", code)
	}
	r := verifyJSON(t, 0, "--dir", filepath.Join(boots(t), "good"), "--reference", set)
	if r.Verdict != "trusted" || r.Reference == nil || *r.Reference != "good" || r.Refusals == nil || len(r.Refusals) != 0 {
		t.Errorf("accepted: %+v", r)
	}
	if len(r.PCRs["sha256"]) != 15 || r.PCRs["sha256"]["10"] != "7874be394e2a21c84fe00a960484aefcaa0446c1f403e23974d75710329dba06" {
		t.Errorf("PCRs: %v", r.PCRs)
	}
	r = verifyJSON(t, 1, "--dir", filepath.Join(boots(t), "cmdline"), "--reference", set)
	if r.Verdict != "untrusted" || r.Reference != nil || len(r.Refusals) != 2 || r.Refusals[0].Check != "kernel.cmdline" || r.Facts["commandLine"] == nil {
		t.Errorf("refused: %+v", r)
	}
	r = verifyJSON(t, 1, "--dir", filepath.Join(boots(t), "good"))
	if diff := cmp.Diff([]struct{ Check, Reason string }{{"reference.none", r.Refusals[0].Reason}}, r.Refusals); diff != "" || r.Facts["secureBoot"] == nil {
		t.Errorf("without a set (-want +got):\n%s", diff)
	}
}
