package pod

import (
	"context"
	"encoding/json"
	"fmt"
	"regexp"
	"strings"

	corev1 "k8s.io/api/core/v1"
	kjson "sigs.k8s.io/json"

	"github.com/keelson-project/keelson/workloadattestor/confined"
)

// getPod asks the API for a pod. strange lists fields of it that this version does not know and that may bear on its
// confinement.
func (l *Lookup) getPod(ctx context.Context, namespace, name string) (p *corev1.Pod, strange []string, err error) {
	raw, err := l.config.Pods.Get(ctx, "pods", namespace, name)
	if err != nil {
		return nil, nil, err
	}
	return decodePod(raw)
}

// unknownField matches what sigs.k8s.io/json says of a field that a type does not have.
var unknownField = regexp.MustCompile(`^unknown field "(.*)"$`)

// bearing matches paths of fields that may let a pod have more than the checks look at: a security context's, a volume's, and
// whatever is the host's. The API server fills in other new fields by itself, so they refuse nothing.
var bearing = regexp.MustCompile(`^spec\.(securityContext\.|host|(initContainers|containers|ephemeralContainers)\[\d+\]\.securityContext\.|volumes\[\d+\]\.)`)

// maxStrange bounds how many unknown fields are reported.
const maxStrange = 4

// decodePod reads a pod as the API server writes it.
func decodePod(raw []byte) (p *corev1.Pod, strange []string, err error) {
	p = new(corev1.Pod)
	problems, err := kjson.UnmarshalStrict(raw, p)
	if err != nil {
		return nil, nil, fmt.Errorf("the API's answer is no pod: %w", err)
	}
	for _, problem := range problems {
		m := unknownField.FindStringSubmatch(problem.Error())
		if m == nil { // a field that is given twice: which of the two is meant is not known
			return nil, nil, fmt.Errorf("the API's answer is ambiguous: %w", problem)
		}
		if bearing.MatchString(m[1]) && len(strange) < maxStrange {
			strange = append(strange, fmt.Sprintf("this version of Keelson does not know what field %.200s allows", m[1]))
		}
	}
	return p, strange, nil
}

// judge holds the pod's spec against the levels.
func (l *Lookup) judge(ctx context.Context, p *corev1.Pod, strange []string) Facts {
	rules := confined.Rules{AllowedHostPaths: l.config.AllowedHostPaths, PartsOnly: true, Claims: claims{ctx, l.config.Pods}}
	facts := Facts{
		Baseline: confined.Judge(confined.Baseline, p, rules), Restricted: confined.Judge(confined.Restricted, p, rules),
		Paths: confined.Paths(p, rules),
	}
	for _, j := range []*confined.Judgement{&facts.Baseline, &facts.Restricted} {
		j.Unknown = append(j.Unknown, strange...)
	}
	for _, why := range strange {
		if strings.Contains(why, "spec.volumes") {
			facts.Paths.Unknown = append(facts.Paths.Unknown, why)
		}
	}
	if p.Spec.RuntimeClassName != nil {
		facts.RuntimeClass = *p.Spec.RuntimeClassName
	}
	for _, reference := range p.Spec.ImagePullSecrets {
		facts.PullSecrets = append(facts.PullSecrets, reference.Name)
	}
	facts.Images = map[string]string{}
	note := func(name, image string) {
		facts.Containers = append(facts.Containers, name)
		facts.Images[name] = image
	}
	for i := range p.Spec.InitContainers {
		note(p.Spec.InitContainers[i].Name, p.Spec.InitContainers[i].Image)
	}
	for i := range p.Spec.Containers {
		note(p.Spec.Containers[i].Name, p.Spec.Containers[i].Image)
	}
	for i := range p.Spec.EphemeralContainers {
		note(p.Spec.EphemeralContainers[i].Name, p.Spec.EphemeralContainers[i].Image)
	}
	return facts
}

// claims asks the API what a pod's claims are. What it may not read is not known.
type claims struct {
	ctx context.Context // of one judgement
	api Getter
}

// Claim implements confined.Claims.
func (c claims) Claim(pod *corev1.Pod, volume *corev1.Volume) confined.Volume {
	name, _ := confined.ClaimName(pod, volume)
	var claim corev1.PersistentVolumeClaim
	if err := c.get("persistentvolumeclaims", pod.Namespace, name, &claim); err != nil {
		return confined.Volume{Why: err.Error()}
	}
	bound, err := confined.Bound(pod, volume, &claim)
	if err != nil {
		return confined.Volume{Why: err.Error()}
	}
	var pv corev1.PersistentVolume
	if err := c.get("persistentvolumes", "", bound, &pv); err != nil {
		return confined.Volume{Why: err.Error()}
	}
	return confined.OfVolume(&claim, &pv)
}

func (c claims) get(resource, namespace, name string, into any) error {
	raw, err := c.api.Get(c.ctx, resource, namespace, name)
	if err == nil {
		err = json.Unmarshal(raw, into)
	}
	if err != nil {
		return fmt.Errorf("%s %s cannot be read: %w", strings.TrimSuffix(resource, "s"), name, err)
	}
	return nil
}
