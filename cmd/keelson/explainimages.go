package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/keelson-project/keelson/policy-sync/history"
	"github.com/keelson-project/keelson/policy-sync/kube"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
)

// readHistory reads which images workloads ran. A note says what could not be read.
func readHistory(ctx context.Context, api kubernetes.Interface, namespace string) (images []history.Image, note string) {
	for _, name := range kube.HistoryNames() {
		c, err := api.CoreV1().ConfigMaps(namespace).Get(ctx, name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			continue
		}
		if err == nil {
			var part []history.Image
			part, err = kube.UnpackHistory(c)
			images = append(images, part...)
		}
		if err != nil {
			note = fmt.Sprintf("which images workloads ran is not known: ConfigMap %s/%s: %v", namespace, name, err)
		}
	}
	return images, note
}

// explainedImage is one image of a pod, and what its workload ran by the same name.
type explainedImage struct {
	Place     string   `json:"place"`
	Reference string   `json:"reference"`
	Platform  string   `json:"platform,omitempty"`
	Manifests []string `json:"manifests,omitempty"`
	Config    string   `json:"config,omitempty"`
	SignedBy  []string `json:"signedBy,omitempty"`
	// SameOn are other nodes that ran the same image by this name.
	SameOn []string `json:"sameOn,omitempty"`
	// Other is what other nodes ran by this name, where none of them ran the same.
	Other *history.Image `json:"other,omitempty"`
	// History has what the name meant, the latest first.
	History []history.Image `json:"history,omitempty"`
}

// imagesOf lists the images that the pod's node reports.
func imagesOf(pod *corev1.Pod, s snapshot.Snapshot, images []history.Image) []explainedImage {
	var own []history.Image
	for _, i := range images {
		if i.Namespace == pod.Namespace && i.Account == snapshot.ServiceAccount(pod) {
			own = append(own, i)
		}
	}
	slices.SortFunc(own, history.Compare)
	var out []explainedImage
	for _, i := range s.Config.ImagesOf(pod, snapshot.Platforms(s.Nodes)[pod.Spec.NodeName]) {
		if i.State != snapshot.ImageUsed {
			continue
		}
		known := s.Images[i.Key]
		e := explainedImage{Place: i.Subject(), Reference: i.Reference, Platform: i.Key.Platform, Manifests: known.Manifests, Config: known.Config, SignedBy: known.SignedBy}
		for _, h := range own {
			if h.Reference == i.Reference && h.Platform == i.Key.Platform {
				e.History = append(e.History, h)
			}
		}
		if len(known.Manifests) > 0 {
			e.SameOn, e.Other = history.Elsewhere(own, pod.Spec.NodeName, history.Seen{Reference: i.Reference, Platform: i.Key.Platform, Manifests: known.Manifests, Config: known.Config})
		}
		out = append(out, e)
	}
	return out
}

func (e explainedImage) text(t *lines) {
	what := "not known"
	if len(e.Manifests) > 0 {
		what = strings.Join(e.Manifests, " or ")
	}
	t.add("  %s: image %s is %s", e.Place, e.Reference, what)
	if e.Config != "" {
		t.add("    config %s", e.Config)
	}
	t.list("    signed by ", e.SignedBy)
	switch {
	case len(e.SameOn) > 0:
		t.add("    the same image ran on %s", strings.Join(e.SameOn, ", "))
	case e.Other != nil:
		t.add("    not the image that ran on %s by this name until %s: that was %s", strings.Join(e.Other.Nodes, ", "), stamp(e.Other.Last), strings.Join(e.Other.Manifests, " or "))
	}
	for n, h := range e.History {
		now := "it meant"
		if n == 0 {
			now = "it means"
		}
		signed := "signed by no verifier"
		if len(h.SignedBy) > 0 {
			signed = "signed by " + strings.Join(h.SignedBy, ", ")
		}
		config := ""
		if h.Config != "" {
			config = ", config " + h.Config
		}
		t.add("    %s %s%s since %s, last started %s, on %s, %s", now, strings.Join(h.Manifests, " or "), config, stamp(h.First), stamp(h.Last), strings.Join(h.Nodes, ", "), signed)
	}
}
