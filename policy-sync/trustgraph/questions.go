package trustgraph

import (
	"reflect"
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
	c := newCommon(s, confines{})
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
	return snapshot.AskAbout(s.Config, s.AllPods(), s.Nodes, func(pod *corev1.Pod) ([]string, bool) {
		return c.asks(pod, choosers[pod.Namespace])
	})
}

// asks says whether a pod's images are asked about, and whom: the verifiers of the policies that
// choose it.
func (c *common) asks(pod *corev1.Pod, choosers []chooser) ([]string, bool) {
	if c.modes[pod.Namespace] == "" || pod.Spec.HostNetwork || !c.believed(pod.Spec.NodeName) {
		return nil, false
	}
	var names []string
	selected := false
	for _, one := range choosers {
		if one.selects(pod) {
			selected = true
			names = append(names, one.policy.Spec.Require.Image.Verifiers()...)
		}
	}
	slices.Sort(names)
	return slices.Compact(names), selected
}

// ask collects the questions about the namespace's images.
func (b *builder) ask() snapshot.Asked {
	var choosers []chooser
	for _, p := range b.source.policies {
		for _, spec := range specsOf(p) {
			choosers = append(choosers, newChooser(&Policy{Spec: *spec}))
		}
	}
	return snapshot.AskOne(b.s.Config, b.source.pods, b.platforms, func(pod *corev1.Pod) ([]string, bool) { return b.asks(pod, choosers) })
}

// questions are what an Engine keeps of the questions about images.
type questions struct {
	parts map[string]*part
	// news are namespaces whose part may be another than in parts.
	news   map[string]bool
	byNode map[string]int
	// over counts the parts and the nodes at which a bound was met.
	over int
	list []snapshot.ImageQuestion
}

// Questions are the ImageQuestions of the snapshot of the last Build. While nothing of them changes they
// are the same list.
func (e *Engine) Questions() []snapshot.ImageQuestion {
	q := &e.questions
	another := false
	for name := range q.news {
		had, now := q.parts[name], e.parts[name]
		if now == nil {
			delete(q.parts, name)
		} else {
			q.parts[name] = now
		}
		if had != nil && now != nil && reflect.DeepEqual(had.asked, now.asked) {
			continue
		}
		another = true
		q.count(had, -1)
		q.count(now, 1)
	}
	clear(q.news)
	switch {
	case q.over > 0:
		q.list = ImageQuestions(e.common.s)
	case another:
		all := make([]snapshot.Asked, 0, len(q.parts))
		for _, p := range q.parts {
			all = append(all, p.asked)
		}
		q.list = snapshot.JoinAsked(all)
	}
	return q.list
}

// count adds what a part asks, or takes it away.
func (q *questions) count(p *part, by int) {
	if p == nil {
		return
	}
	if p.asked.Over {
		q.over += by
	}
	for node, n := range p.asked.ByNode {
		before := q.byNode[node]
		now := before + n*by
		if q.byNode[node] = now; now == 0 {
			delete(q.byNode, node)
		}
		if (before > snapshot.MaxNodeImages) != (now > snapshot.MaxNodeImages) {
			q.over += by
		}
	}
}

// specsOf are the specs by which a policy may be judged. Which one it is does not matter to who is asked.
func specsOf(p *v1alpha1.TrustPolicy) []*v1alpha1.TrustPolicySpec {
	if last := p.Status.LastAccepted; last != nil && last.Generation != p.Generation {
		return []*v1alpha1.TrustPolicySpec{&p.Spec, &last.Spec}
	}
	return []*v1alpha1.TrustPolicySpec{&p.Spec}
}
