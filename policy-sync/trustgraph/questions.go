package trustgraph

import (
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
)

// ImageQuestions lists what has to be known about images before Build can judge the pods, sorted and bounded: images of pods
// of enrolled namespaces that a policy selects, on nodes that are trusted or held. Any other node's status is worth nothing,
// so its kubelet cannot have anyone ask about anything.
func ImageQuestions(s snapshot.Snapshot) []snapshot.ImageQuestion {
	s.Config = s.Config.WithDefaults()
	c := newCommon(s)
	choosers := map[string][]chooser{}
	for i := range s.Policies {
		p := &s.Policies[i]
		if c.modes[p.Namespace] == "" {
			continue
		}
		for _, spec := range specsOf(p) {
			choosers[p.Namespace] = append(choosers[p.Namespace], newChooser(&Policy{Spec: *spec}))
		}
	}
	return snapshot.AskAbout(s.Config, s.Pods, s.Nodes, func(pod *corev1.Pod) ([]string, bool) {
		node := c.nodes[pod.Spec.NodeName]
		if pod.Spec.HostNetwork || node.Verdict != v1alpha1.VerdictTrusted && !node.Held {
			return nil, false
		}
		var names []string
		selected := false
		for _, one := range choosers[pod.Namespace] {
			if one.selects(pod) {
				selected = true
				names = append(names, one.policy.Spec.Require.Image.Verifiers()...)
			}
		}
		slices.Sort(names)
		return slices.Compact(names), selected
	})
}

// specsOf are the specs by which a policy may be judged. Which one it is does not matter to who is asked.
func specsOf(p *v1alpha1.TrustPolicy) []*v1alpha1.TrustPolicySpec {
	if last := p.Status.LastAccepted; last != nil && last.Generation != p.Generation {
		return []*v1alpha1.TrustPolicySpec{&p.Spec, &last.Spec}
	}
	return []*v1alpha1.TrustPolicySpec{&p.Spec}
}
