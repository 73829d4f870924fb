package trustgraph

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
	"github.com/keelson-project/keelson/workloadattestor/confined"
)

// levelOf returns the level that a policy asks for, "" for none; false if it is no level.
func levelOf(r v1alpha1.RuntimeRequirement) (confined.Level, bool) {
	switch r {
	case "", v1alpha1.RuntimeAny:
		return "", true
	case v1alpha1.RuntimeBaseline:
		return confined.Baseline, true
	case v1alpha1.RuntimeRestricted:
		return confined.Restricted, true
	default:
		return "", false
	}
}

// judgePosture judges a pod's spec by the level that a policy asks for.
func (b *builder) judgePosture(pod *corev1.Pod, p *Policy) confined.Judgement {
	level, ok := levelOf(p.Spec.Require.Runtime)
	switch {
	case !ok:
		return confined.Judgement{Refused: []string{fmt.Sprintf("policy %s asks for runtime %q, which is unknown", p.Name, p.Spec.Require.Runtime)}}
	case level == "":
		return confined.Judgement{}
	}
	rules := confined.Rules{AllowedHostPaths: b.s.Config.AllowedHostPaths}
	if b.volumes != nil {
		rules.Claims = noted{b}
	}
	return confined.Judge(level, pod, rules)
}

// volumeQuestion asks what the claim behind a pod's volume is.
type volumeQuestion struct {
	pod    *corev1.Pod
	volume *corev1.Volume
}

// noted asks the snapshot's volumes, and notes that the part rests on the answer.
type noted struct{ b *builder }

// Claim implements confined.Claims.
func (n noted) Claim(pod *corev1.Pod, volume *corev1.Volume) confined.Volume {
	out := n.b.volumes.Claim(pod, volume)
	n.b.rests.volumes[volumeQuestion{pod, volume}] = out
	return out
}

// volumeIndex is a snapshot's volumes as confined.Claims.
type volumeIndex struct {
	of *snapshot.Volumes
	// claims are by namespace/name, volumes by name. They are made with the first question.
	claims  map[string]*corev1.PersistentVolumeClaim
	volumes map[string]*corev1.PersistentVolume
}

func newVolumeIndex(v *snapshot.Volumes) *volumeIndex {
	if v == nil {
		return nil
	}
	return &volumeIndex{of: v}
}

func (x *volumeIndex) index() {
	x.claims = make(map[string]*corev1.PersistentVolumeClaim, len(x.of.Claims))
	x.volumes = make(map[string]*corev1.PersistentVolume, len(x.of.PersistentVolumes))
	for _, c := range x.of.Claims {
		x.claims[c.Namespace+"/"+c.Name] = c
	}
	for _, v := range x.of.PersistentVolumes {
		x.volumes[v.Name] = v
	}
}

// Claim implements confined.Claims.
func (x *volumeIndex) Claim(pod *corev1.Pod, volume *corev1.Volume) confined.Volume {
	if x.claims == nil {
		x.index()
	}
	name, _ := confined.ClaimName(pod, volume)
	claim := x.claims[pod.Namespace+"/"+name]
	bound, err := confined.Bound(pod, volume, claim)
	if err != nil {
		return confined.Volume{Why: err.Error()}
	}
	return confined.OfVolume(claim, x.volumes[bound])
}
