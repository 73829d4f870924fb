package plugintest_test

import (
	"crypto/sha256"
	"os"
	"slices"
	"testing"

	"github.com/keelson-project/keelson/nodeattestor/audit"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
	"github.com/keelson-project/keelson/test/tpmtest"
	"github.com/keelson-project/keelson/test/vectors"
)

// measureBySystemd extends the machine's TPM as systemd does after boot, and writes its log.
func (m *machine) measureBySystemd(t testing.TB, words *vectors.Log, log []byte, pcr int, event, word string) []byte {
	t.Helper()
	digest := sha256.Sum256([]byte(word))
	check(t, m.dev.PCRExtend(t.Context(), pcr, map[nodeclaim.HashAlg][]byte{nodeclaim.SHA256: digest[:]}))
	log = words.Userspace(log, pcr, event, []byte(word), word)
	check(t, os.WriteFile(m.file("tpm2-measure.log"), log, 0o600))
	return log
}

// TestANodeWhoseSystemdMeasuredIsTrusted: systemd 261 extends PCRs 0 to 7 and more when user space begins, which IMA's
// boot_aggregate was computed from before, and goes on after that.
func TestANodeWhoseSystemdMeasuredIsTrusted(t *testing.T) {
	ca := must2(tpmtest.NewCA())(t)
	m := newMachine(t, ca, "good", "L-2")
	words := vectors.NewLog(nodeclaim.SHA256)
	var log []byte
	for _, pcr := range []int{0, 1, 2, 3, 4, 5, 6, 7, 9, 12, 13, 14} {
		log = m.measureBySystemd(t, words, log, pcr, "os-separator", "os-separator")
	}
	log = m.measureBySystemd(t, words, log, 11, "phase", "enter-initrd")
	newNode(t, "systemd")
	s := newServer(t, serverOptions{ca: ca, reference: m.capture(t, "good"), inventory: map[string][]string{"systemd": m.ekHex}})
	m.serve(t, "systemd_log = \""+m.file("tpm2-measure.log")+"\"\n")
	for range 2 {
		attrs, err := attest(t, m, s, nil)
		check(t, err)
		if !slices.Contains(attrs.SelectorValues, "ref:good") || !slices.Contains(attrs.SelectorValues, "ima:clean") {
			t.Errorf("selectors %v", attrs.SelectorValues)
		}
	}
	log = m.measureBySystemd(t, words, log, 11, "phase", "leave-initrd")
	_, err := attest(t, m, s, nil)
	check(t, err)

	// What nobody but user space's log explains is refused without it, and so is what that log passes off as its own.
	m.measureBySystemd(t, words, log, 4, "os-separator", "another image")
	_, err = attest(t, m, s, nil)
	refused(t, s, err, audit.Untrusted, "bootloader.digest")
}
