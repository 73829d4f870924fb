package main

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/keelson-project/keelson/policy-sync/plan"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
	"github.com/keelson-project/keelson/policy-sync/snapshot/snapshottest"
)

func demo(t *testing.T) (snapshot.Snapshot, plan.Result) {
	t.Helper()
	s := snapshottest.Demo()
	r, err := plan.Make(s)
	if err != nil {
		t.Fatal(err)
	}
	return s, r
}

func TestExplain(t *testing.T) {
	s, r := demo(t)
	for name, tc := range map[string]struct {
		explain func(string, snapshot.Snapshot, plan.Result) (explanation, error)
		about   string
		want    []string
		wrong   string
	}{
		"if a node is trusted, its proof is shown": {explainNode, "fra-1",
			[]string{"node fra-1 is trusted", "reference set         prod", "agent known to SPIRE  yes", "policy-sync has still to patch", "pod payments/api-fra-1: attested"}, ""},
		"if a node is proved bad, the reason names what changed": {explainNode, "evil-1",
			[]string{"node evil-1 is untrusted", "because boot.cmdline: kernel command line is", "pod payments/api-evil-1: not attested"}, ""},
		"if a pod is attested, its callers are shown": {explainPod, "payments/api-fra-1",
			[]string{"pod payments/api-fra-1 is attested", "policy api: met", "may be called by attested pods of shop/frontend"}, ""},
		"if a pod is on a node elsewhere, the tag is named": {explainPod, "payments/api-par-1",
			[]string{"pod payments/api-par-1 is not attested", "policy api: not met", "country=FR"}, ""},
		"if a namespace is not enrolled, say how":  {explainPod, "other/stranger-fra-1", []string{"is not attested", "not enrolled", "trust.keelson.io/mode"}, ""},
		"if there is no such node, say so":         {explainNode, "nowhere", nil, "there is no node nowhere"},
		"if there is no such pod, say so":          {explainPod, "payments/none", nil, "there is no pod payments/none"},
		"if a pod comes without namespace, refuse": {explainPod, "api-fra-1", nil, "is not NAMESPACE/NAME"},
	} {
		t.Run(name, func(t *testing.T) {
			e, err := tc.explain(tc.about, s, r)
			if tc.wrong != "" {
				if err == nil || !strings.Contains(err.Error(), tc.wrong) {
					t.Errorf("got %v, want %q", err, tc.wrong)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var text, program bytes.Buffer
			if err := e.text(&text); err != nil {
				t.Fatal(err)
			}
			for _, want := range tc.want {
				if !strings.Contains(text.String(), want) {
					t.Errorf("no %q in\n%s", want, &text)
				}
			}
			if err := writeJSON(&program, e); err != nil || !json.Valid(program.Bytes()) {
				t.Errorf("as JSON: %v\n%s", err, &program)
			}
		})
	}
}

func TestPrintPlan(t *testing.T) {
	_, r := demo(t)
	var text, program bytes.Buffer
	if err := printPlan(&text, "text", r.Plan, []string{"seen"}); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"revoke", "default-deny", "create-entry", "Node fra-1", "note: seen"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("no %q in\n%s", want, &text)
		}
	}
	if err := printPlan(&program, "json", r.Plan, nil); err != nil {
		t.Fatal(err)
	}
	var got plannedOutput
	if err := json.Unmarshal(program.Bytes(), &got); err != nil || len(got.Operations) != len(r.Plan.Operations) {
		t.Errorf("%d of %d operations, %v", len(got.Operations), len(r.Plan.Operations), err)
	}
	if err := printPlan(&program, "yaml", r.Plan, nil); err == nil {
		t.Error("an unknown output was taken")
	}
}

func TestLookingAtAClusterNeedsToKnowWhich(t *testing.T) {
	for name, args := range map[string][]string{
		"if nothing is given, refuse":             {"plan"},
		"if the trust domain is none, refuse":     {"plan", "--trust-domain", "spiffe://a/b"},
		"if the configuration is missing, refuse": {"plan", "--config", "/does/not/exist"},
		"if the kubeconfig is missing, refuse":    {"plan", "--trust-domain", "a.test", "--kubeconfig", "/does/not/exist"},
		"if the output is unknown, refuse":        {"explain", "node", "x", "-o", "yaml", "--trust-domain", "a.test"},
		"if explain is not told what, refuse":     {"explain"},
		"if a node's name is missing, refuse":     {"explain", "node"},
	} {
		t.Run(name, func(t *testing.T) {
			var out, errs bytes.Buffer
			if code := run(args, &out, &errs); code != exitWrong || out.Len() > 0 || errs.Len() == 0 {
				t.Errorf("exit %d, output %q, errors %q", code, &out, &errs)
			}
		})
	}
}
