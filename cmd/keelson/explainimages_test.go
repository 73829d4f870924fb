package main

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/keelson-project/keelson/policy-sync/history"
	"github.com/keelson-project/keelson/policy-sync/plan"
	"github.com/keelson-project/keelson/policy-sync/snapshot/snapshottest"
)

// TestExplainShowsWhatANameMeant: the same image as on another node, or not.
func TestExplainShowsWhatANameMeant(t *testing.T) {
	s := snapshottest.Demo()
	pod := s.Pods[0]
	reference := pod.Spec.Containers[0].Image
	r, err := plan.Make(s)
	if err != nil {
		t.Fatal(err)
	}
	key := s.Config.ImagesOf(pod, "")[0].Key
	manifests := s.Images[key].Manifests
	at := time.Date(2026, 10, 1, 12, 0, 0, 0, time.UTC)
	record := history.Image{Namespace: pod.Namespace, Account: pod.Spec.ServiceAccountName, Reference: reference, Manifests: manifests,
		First: at, Last: at, Nodes: []string{"par-9"}, SignedBy: []string{"release-key sha256:ab"}}
	other := record
	other.Manifests, other.Nodes, other.Last = []string{snapshottest.Digest("other")}, []string{"fra-9"}, at.Add(-time.Hour)
	elsewhere := record
	elsewhere.Namespace = "shop"
	for name, c := range map[string]struct {
		images []history.Image
		want   []string
		not    string
	}{
		"the same on another node": {[]history.Image{other, record, elsewhere}, []string{"the same image ran on par-9", "it means " + manifests[0], "it meant " + other.Manifests[0],
			"since 2026-10-01T12:00:00Z", "signed by release-key sha256:ab"}, "not the image"},
		"another on another node": {[]history.Image{other}, []string{"not the image that ran on fra-9 by this name until 2026-10-01T11:00:00Z: that was " + other.Manifests[0]}, "the same image"},
		"nothing is known":        {nil, []string{"image " + reference + " is " + manifests[0]}, "it means"},
	} {
		t.Run(name, func(t *testing.T) {
			e, err := explainPod(pod.Namespace+"/"+pod.Name, s, r)
			if err != nil {
				t.Fatal(err)
			}
			e.(seer).see(observed{snapshot: s, result: r, verified: true, images: c.images})
			var out bytes.Buffer
			if err := e.text(&out); err != nil {
				t.Fatal(err)
			}
			for _, want := range c.want {
				if !strings.Contains(out.String(), want) {
					t.Errorf("no %q in\n%s", want, &out)
				}
			}
			if strings.Contains(out.String(), c.not) {
				t.Errorf("%q in\n%s", c.not, &out)
			}
		})
	}
}
