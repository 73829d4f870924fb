package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// ask runs the command line as an administrator who has only a kubeconfig.
func (w *world) ask(args ...string) (out, errs string, code int) {
	w.t.Helper()
	kubeconfig, err := w.cluster.KubeconfigFor("operator", "system:masters")
	w.must(err)
	cmd := exec.CommandContext(w.t.Context(), filepath.Join(w.dir, "keelson"), args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+kubeconfig)
	var o, e bytes.Buffer
	cmd.Stdout, cmd.Stderr = &o, &e
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		w.t.Fatal(err)
	}
	w.t.Logf("keelson %v: exit %d\n%s%s", args, cmd.ProcessState.ExitCode(), &o, &e)
	return o.String(), e.String(), cmd.ProcessState.ExitCode()
}

func holds(t *testing.T, what, text string, want ...string) {
	t.Helper()
	for _, s := range want {
		if !strings.Contains(text, s) {
			t.Errorf("%s lacks %q:\n%s", what, s, text)
		}
	}
}

func stepInstalled(t *testing.T, w *world) {
	if _, errs, code := w.ask("plan"); code != 2 || !strings.Contains(errs, "there is no configuration of policy-sync in namespace keelson-system (ConfigMap keelson-policy-sync, key policy-sync.yaml)") {
		t.Errorf("nothing is installed: exit %d, %s", code, errs)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	w.must(err)
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	w.must(err)
	// As the chart makes it, with a verifier whose key is in a ConfigMap of its own.
	config := strings.Replace(w.text, "  verifiers:\n", "  verifiers:\n  - name: team\n    publicKey: /etc/keelson/keys/team.pem\n", 1)
	w.create(&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "keelson-system", Name: "keelson-policy-sync"}, Data: map[string]string{"policy-sync.yaml": config}})
	if _, errs, code := w.ask("plan"); code != 2 || !strings.Contains(errs, "/etc/keelson/keys/team.pem") || !strings.Contains(errs, "exec deploy/keelson-policy-sync -- /keelson plan") {
		t.Errorf("a key that is missing: exit %d, %s", code, errs)
	}
	w.create(&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "keelson-system", Name: "keelson-policy-sync-keys"},
		Data: map[string]string{"team.pem": string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))}})
	out, _, code := w.ask("plan")
	if code != 0 {
		t.Errorf("plan: exit %d", code)
	}
	holds(t, "the plan", out, "nothing to do", "the configuration is that of ConfigMap keelson-system/keelson-policy-sync, ConfigMap keelson-system/keelson-policy-sync-keys")
	out, errs, code := w.ask("explain", "pod", "payments/api-fra")
	if code != 0 {
		t.Errorf("explain: exit %d", code)
	}
	holds(t, "the explanation", out, "pod payments/api-fra is attested")
	holds(t, "the notes", errs, "the configuration is that of ConfigMap")
	if _, errs, code := w.ask("explain", "node", "fra-1", "--namespace", "elsewhere"); code != 2 || !strings.Contains(errs, "in namespace elsewhere") {
		t.Errorf("another namespace: exit %d, %s", code, errs)
	}
}

func stepUntold(t *testing.T, w *world) {
	out, errs, code := w.ask("plan", "--trust-domain", trustDomain, "--spire-socket", w.spire.Socket)
	if code != 2 || strings.Contains(out, "Pod ") {
		t.Errorf("exit %d; a plan for pods of whose images nothing is known:\n%s", code, out)
	}
	holds(t, "the error", errs, "cannot be told without --config")
	out, errs, code = w.ask("explain", "pod", "payments/api-fra", "--trust-domain", trustDomain)
	if code != 2 || strings.Contains(out, "not attested") || strings.Contains(out, "has still to") {
		t.Errorf("exit %d; an image of which nothing is known counts as refused:\n%s", code, out)
	}
	holds(t, "the explanation", out, "it is not known yet whether pod payments/api-fra meets its policy", "policy api: not known yet", "has not been examined")
	holds(t, "the error", errs, "whether pod payments/api-fra is attested cannot be told without --config")
	if out, _, code := w.ask("explain", "pod", "payments/api-par", "--trust-domain", trustDomain); code != 0 || !strings.Contains(out, "pod payments/api-par is not attested") {
		t.Errorf("a pod whose node speaks against it: exit %d\n%s", code, out)
	}
	out, _, code = w.ask("explain", "node", "fra-1", "--trust-domain", trustDomain)
	if code != 2 {
		t.Errorf("exit %d", code)
	}
	holds(t, "the explanation", out, "node fra-1 is trusted", "pod payments/api-fra: not known yet")
}

func stepNotRunning(t *testing.T, w *world) {
	w.sync.Stop(10 * time.Second)
	late := w.pod("payments", "api-late", "api", "fra-1", "10.1.0.7")
	w.create(late)
	out, _, _ := w.ask("explain", "pod", "payments/api-late")
	holds(t, "the explanation", out, "pod payments/api-late meets its policy, but has no label yet: policy-sync does not run: nobody holds its lease, and its heartbeat is from 20")
	out, _, code := w.ask("plan", "--trust-domain", trustDomain)
	holds(t, "the plan", out, "waits: ", "note: policy-sync does not run")
	if code != 2 {
		t.Errorf("exit %d", code)
	}
	w.must(w.api.Delete(t.Context(), late, client.GracePeriodSeconds(0)))
	w.start()
	w.eventually("policy-sync is back", func() error { return w.attested("payments", "api-fra", true)() })
}
