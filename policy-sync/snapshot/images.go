package snapshot

import (
	"cmp"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
)

// ImageQuestion is one image whose facts belong into Snapshot.Images, and the
// verifiers to ask about it.
type ImageQuestion struct {
	ImageKey
	// Verifiers are sorted names; none means that only the manifest is wanted.
	Verifiers []string
	// Namespace is the first one, by name, whose pods bring the image along.
	Namespace string
}

// Bounds on the questions, which pods' authors and kubelets can multiply: different images of one pod, of the pods of one
// node, and of those of one namespace. A kubelet runs 110 pods unless it is told otherwise.
const (
	maxPodImages       = 64
	maxNodeImages      = 2048
	maxNamespaceImages = 4096
)

// ImageQuestions lists what has to be known about images before trustgraph.Build can judge the pods of namespaces with
// policies: one question per image, sorted. trustgraph.ImageQuestions knows more of the world and asks less.
func ImageQuestions(pods []*corev1.Pod, policies []v1alpha1.TrustPolicy, nodes []corev1.Node) []ImageQuestion {
	verifiers := map[string][]string{}
	for _, p := range policies {
		verifiers[p.Namespace] = append(verifiers[p.Namespace], p.Spec.Require.Image.Verifiers()...)
	}
	return AskAbout(Config{}, pods, nodes, func(pod *corev1.Pod) ([]string, bool) {
		names, ok := verifiers[pod.Namespace]
		return names, ok
	})
}

// AskAbout lists the questions about the images of the pods for which ask says true, with the verifiers that it names. Only
// what a pod's spec brings along is asked about (ImagesOf), and within bounds: pods that bear the trust label come first, then
// the older ones, so that new pods and statuses never keep an attested pod's images from being asked about. No image of a
// mirror pod is asked about: it stands for a file on its node, and is never attested.
func AskAbout(config Config, pods []*corev1.Pod, nodes []corev1.Node, ask func(*corev1.Pod) (verifiers []string, ok bool)) []ImageQuestion {
	c := newCollector(config, nodes)
	for _, pod := range pods {
		c.collect(pod, ask)
	}
	if c.over { // then the order decides
		order := slices.Clone(pods)
		slices.SortFunc(order, first)
		c = newCollector(config, nodes)
		for _, pod := range order {
			c.collect(pod, ask)
		}
	}
	return c.questions()
}

// Asked is the questions about one namespace's pods.
type Asked struct {
	Questions []ImageQuestion
	// ByNode is how many different images the pods bring to each node.
	ByNode map[string]int
	// Over is true where a bound was met: then the order of all pods decides, and AskAbout has to be
	// asked.
	Over bool
}

// AskOne is AskAbout for the pods of one namespace, on nodes of the given platforms.
func AskOne(config Config, pods []*corev1.Pod, platforms map[string]string, ask func(*corev1.Pod) (verifiers []string, ok bool)) Asked {
	c := newCollector(config, nil)
	c.platforms = platforms
	for _, pod := range pods {
		c.collect(pod, ask)
	}
	out := Asked{Questions: c.questions(), ByNode: make(map[string]int, len(c.byNode)), Over: c.over}
	for node, images := range c.byNode {
		out.ByNode[node] = len(images)
	}
	return out
}

// JoinAsked joins the questions about several namespaces.
func JoinAsked(all []Asked) []ImageQuestion {
	c := newCollector(Config{}, nil)
	for _, of := range all {
		for _, q := range of.Questions {
			have := c.asked[q.ImageKey]
			if have == nil {
				q.Verifiers = slices.Clone(q.Verifiers)
				c.asked[q.ImageKey] = &q
				continue
			}
			have.Namespace = min(have.Namespace, q.Namespace)
			for _, name := range q.Verifiers {
				if !slices.Contains(have.Verifiers, name) {
					have.Verifiers = append(have.Verifiers, name)
				}
			}
		}
	}
	return c.questions()
}

// MaxNodeImages is how many different images of the pods of one node are asked about.
const MaxNodeImages = maxNodeImages

// first orders pods by whose images are asked about first.
func first(a, b *corev1.Pod) int {
	unlabelled := func(p *corev1.Pod) int {
		if p.Labels[v1alpha1.PodAttestedLabel] == v1alpha1.True {
			return 0
		}
		return 1
	}
	return cmp.Or(cmp.Compare(unlabelled(a), unlabelled(b)), a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(Key(a), Key(b)))
}

// collector gathers questions within the bounds.
type collector struct {
	config    Config
	platforms map[string]string
	asked     map[ImageKey]*ImageQuestion
	// byNode and byNamespace are the different images of each.
	byNode, byNamespace map[string]map[ImageKey]bool
	// over is true once a bound of a node or a namespace was met.
	over bool
}

func newCollector(config Config, nodes []corev1.Node) *collector {
	return &collector{config: config, platforms: Platforms(nodes), asked: map[ImageKey]*ImageQuestion{}, byNode: map[string]map[ImageKey]bool{}, byNamespace: map[string]map[ImageKey]bool{}}
}

func (c *collector) collect(pod *corev1.Pod, ask func(*corev1.Pod) ([]string, bool)) {
	if Ended(pod) || Mirror(pod) {
		return
	}
	names, ok := ask(pod)
	if !ok {
		return
	}
	n := 0
	for _, i := range c.config.ImagesOf(pod, c.platforms[pod.Spec.NodeName]) {
		if i.Key.ImageID == "" {
			continue
		}
		if n++; n > maxPodImages {
			return
		}
		if !c.admit(c.byNode, pod.Spec.NodeName, i.Key, maxNodeImages) || !c.admit(c.byNamespace, pod.Namespace, i.Key, maxNamespaceImages) {
			continue
		}
		q := c.asked[i.Key]
		if q == nil {
			q = &ImageQuestion{ImageKey: i.Key, Namespace: pod.Namespace}
			c.asked[i.Key] = q
		}
		q.Namespace = min(q.Namespace, pod.Namespace)
		for _, name := range names {
			if !slices.Contains(q.Verifiers, name) {
				q.Verifiers = append(q.Verifiers, name)
			}
		}
	}
}

// admit counts the image among those of a node or a namespace, and says whether it is within the bound.
func (c *collector) admit(counts map[string]map[ImageKey]bool, of string, key ImageKey, most int) bool {
	if counts[of] == nil {
		counts[of] = map[ImageKey]bool{}
	}
	if !counts[of][key] && len(counts[of]) == most {
		c.over = true
		return false
	}
	counts[of][key] = true
	return true
}

func (c *collector) questions() []ImageQuestion {
	out := make([]ImageQuestion, 0, len(c.asked))
	for _, q := range c.asked {
		slices.Sort(q.Verifiers)
		out = append(out, *q)
	}
	slices.SortFunc(out, func(a, b ImageQuestion) int {
		return cmp.Or(cmp.Compare(a.ImageID, b.ImageID), cmp.Compare(a.Image, b.Image), cmp.Compare(a.Asked, b.Asked), cmp.Compare(a.Platform, b.Platform),
			cmp.Compare(a.Owner.Namespace, b.Owner.Namespace), cmp.Compare(a.Owner.Account, b.Owner.Account), cmp.Compare(a.Owner.PullSecrets, b.Owner.PullSecrets))
	})
	return out
}

// Mirror reports whether the pod is a kubelet's mirror of a file on its node (a static pod). The kubelet makes such an object
// with its own rights, so that neither its labels nor its images were admitted for anyone else.
func Mirror(p *corev1.Pod) bool {
	_, ok := p.Annotations[corev1.MirrorPodAnnotationKey]
	return ok
}

// KeyOf is what a container's status says of its image, on a node of that platform.
func KeyOf(s corev1.ContainerStatus, platform string) ImageKey {
	return ImageKey{Image: s.Image, ImageID: s.ImageID, Platform: platform}
}

// Platforms are the nodes' platforms by name, "os/architecture", where their kubelets say.
func Platforms(nodes []corev1.Node) map[string]string {
	out := make(map[string]string, len(nodes))
	for i := range nodes {
		if info := nodes[i].Status.NodeInfo; info.OperatingSystem != "" && info.Architecture != "" {
			out[nodes[i].Name] = info.OperatingSystem + "/" + info.Architecture
		}
	}
	return out
}

// ContainerStatuses are the statuses of a pod's init, ephemeral and app containers.
func ContainerStatuses(p *corev1.Pod) []corev1.ContainerStatus {
	return slices.Concat(p.Status.InitContainerStatuses, p.Status.ContainerStatuses, p.Status.EphemeralContainerStatuses)
}

// Ended reports whether the pod will never run again.
func Ended(p *corev1.Pod) bool {
	return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
}

// ServiceAccount is the name of the pod's service account.
func ServiceAccount(p *corev1.Pod) string {
	if p.Spec.ServiceAccountName == "" {
		return "default"
	}
	return p.Spec.ServiceAccountName
}

// Key is namespace/name.
func Key(o metav1.Object) string { return o.GetNamespace() + "/" + o.GetName() }
