package stage

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/test/cluster/mesh"
)

// Ports of every workload: HTTP and TCP echo.
const (
	HTTPPort = 8080
	TCPPort  = 9000
)

// Pod is a workload. Its container is "main".
type Pod struct {
	Namespace, Name, Account string
	// Node is where it is to run, by way of the scheduler; with Force it is bound there past the scheduler.
	Node  string
	Force bool
	// Repository of its image, Workload when empty; or Reference, whatever it is.
	Repository, Reference string
	// Mesh puts Istio's proxy beside it.
	Mesh bool
	// What a restricted workload must not have.
	Privileged, HostPID, HostNetwork bool
	// HostPath is a path of the node, of which SubPath (all of it when empty) is mounted at /host.
	HostPath, SubPath string
	// Labels beyond app=<Account>.
	Labels map[string]string
	// Annotations are the author's.
	Annotations map[string]string
}

func (p Pod) String() string { return p.Namespace + "/" + p.Name }

// ID is the SPIFFE ID that the workload gets when all is proved.
func (p Pod) ID() string {
	return "spiffe://" + TrustDomain + "/ns/" + p.Namespace + "/sa/" + p.Account
}

// Socket is the name of the SPIRE agent's, in the folder that the CSI driver mounts.
const Socket = "api.sock"

// Create creates the pod, and leaves the rest to the cluster.
func (s *Stage) Create(ctx context.Context, p Pod) error {
	object, err := s.object(p)
	if err != nil {
		return err
	}
	if _, err := s.Kubernetes.CoreV1().Pods(p.Namespace).Create(ctx, object, metav1.CreateOptions{}); err != nil {
		return fmt.Errorf("stage: pod %s: %w", p, err)
	}
	return nil
}

func (s *Stage) object(p Pod) (*corev1.Pod, error) {
	if p.Repository == "" {
		p.Repository = Workload
	}
	if p.Reference == "" {
		p.Reference = s.Image(p.Repository).Reference()
	}
	no, yes, user := false, true, int64(65532)
	context := &corev1.SecurityContext{
		AllowPrivilegeEscalation: &no, ReadOnlyRootFilesystem: &yes, RunAsNonRoot: &yes, RunAsUser: &user,
		Capabilities:   &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
		SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
	}
	if p.Privileged {
		context = &corev1.SecurityContext{Privileged: &yes}
	}
	labels := map[string]string{"app": p.Account}
	for k, v := range p.Labels {
		labels[k] = v
	}
	grace := int64(0)
	template := corev1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Namespace: p.Namespace, Name: p.Name, Labels: labels, Annotations: maps.Clone(p.Annotations)},
		Spec: corev1.PodSpec{
			ServiceAccountName: p.Account, TerminationGracePeriodSeconds: &grace, HostPID: p.HostPID, HostNetwork: p.HostNetwork,
			Containers: []corev1.Container{{
				Name: "main", Image: p.Reference, SecurityContext: context,
				Args:         []string{"serve", "-http", fmt.Sprintf(":%d", HTTPPort), "-tcp", fmt.Sprintf(":%d", TCPPort)},
				Ports:        []corev1.ContainerPort{{Name: "http", ContainerPort: HTTPPort}, {Name: "tcp-echo", ContainerPort: TCPPort}},
				VolumeMounts: []corev1.VolumeMount{{Name: "spire", MountPath: "/spire", ReadOnly: true}},
			}},
			Volumes: []corev1.Volume{{Name: "spire", VolumeSource: corev1.VolumeSource{
				CSI: &corev1.CSIVolumeSource{Driver: mesh.CSIDriver, ReadOnly: &yes},
			}}},
		},
	}
	if p.HostPath != "" {
		template.Spec.Volumes = append(template.Spec.Volumes, corev1.Volume{Name: "host",
			VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: p.HostPath}}})
		main := &template.Spec.Containers[0]
		main.VolumeMounts = append(main.VolumeMounts, corev1.VolumeMount{Name: "host", MountPath: "/host", SubPath: p.SubPath})
	}
	if p.Force {
		template.Spec.NodeName = p.Node
	} else if p.Node != "" {
		template.Spec.NodeSelector = map[string]string{corev1.LabelHostname: p.Node}
	}
	if p.Mesh {
		sidecar := mesh.Sidecar{TrustDomain: TrustDomain, Image: s.Image(proxy).Reference(), Socket: Socket}
		if err := sidecar.Inject(&template); err != nil {
			return nil, err
		}
	}
	return &corev1.Pod{ObjectMeta: template.ObjectMeta, Spec: template.Spec}, nil
}

// CreateReady creates pods and waits until all are ready.
func (s *Stage) CreateReady(ctx context.Context, pods ...Pod) error {
	for _, p := range pods {
		if err := s.Create(ctx, p); err != nil {
			return err
		}
	}
	for _, p := range pods {
		if err := s.PodReady(ctx, p.Namespace, p.Name, 2*time.Minute); err != nil {
			return err
		}
	}
	return nil
}

// Attested waits until a pod has its trust label.
func (s *Stage) Attested(ctx context.Context, pods ...Pod) error {
	for _, p := range pods {
		if err := s.Until(ctx, time.Minute, p.String()+" has a trust label", func(ctx context.Context) error {
			object, err := s.GetPod(ctx, p.Namespace, p.Name)
			if err == nil && object.Labels[v1alpha1.PodAttestedLabel] != v1alpha1.True {
				err = errors.New("it has none; " + s.Why(ctx, p))
			}
			return err
		}); err != nil {
			return fmt.Errorf("%w; policy-sync's last words:\n%s", err, s.lastWords(ctx))
		}
	}
	return nil
}

// Why is what the policies of the pod's namespace say of it.
func (s *Stage) Why(ctx context.Context, p Pod) string {
	var policies v1alpha1.TrustPolicyList
	if err := s.Client.List(ctx, &policies); err != nil {
		return err.Error()
	}
	var reasons []string
	for _, policy := range policies.Items {
		for _, r := range policy.Status.Refused {
			if policy.Namespace == p.Namespace && r.Pod == p.Name {
				reasons = append(reasons, policy.Name+": "+r.Reason)
			}
		}
	}
	return strings.Join(reasons, "; ")
}

// Team is a namespace with its accounts, as a platform team makes it for an app team.
type Team struct {
	Namespace string
	// Mode is the enrolment, none when empty.
	Mode     string
	Accounts []string
	// Mesh gives the namespace what Istio's proxies need.
	Mesh bool
	// PodSecurity is the level that the API server enforces, "restricted" when empty.
	PodSecurity string
}

// podSecurityLabel says what level of PodSecurity a namespace's pods have to keep to.
const podSecurityLabel = "pod-security.kubernetes.io/enforce"

// CreateTeam makes a namespace, its accounts, and a Service for each account.
func (s *Stage) CreateTeam(ctx context.Context, t Team) error {
	labels := map[string]any{podSecurityLabel: cmp.Or(t.PodSecurity, "restricted")}
	if t.Mode != "" {
		labels[v1alpha1.ModeLabel] = t.Mode
	}
	objects := []map[string]any{{"apiVersion": "v1", "kind": "Namespace", "metadata": map[string]any{"name": t.Namespace, "labels": labels}}}
	for _, account := range t.Accounts {
		meta := map[string]any{"name": account, "namespace": t.Namespace}
		objects = append(objects, map[string]any{"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta}, map[string]any{
			"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": map[string]any{
				"selector": map[string]any{"app": account},
				"ports":    []any{map[string]any{"name": "http", "port": HTTPPort}, map[string]any{"name": "tcp-echo", "port": TCPPort}},
			},
		})
	}
	var documents [][]byte
	for _, o := range objects {
		document, err := json.Marshal(o)
		if err != nil {
			return fmt.Errorf("stage: %w", err)
		}
		documents = append(documents, document)
	}
	if err := s.Cluster.Apply(ctx, documents...); err != nil {
		return err
	}
	if !t.Mesh {
		return nil
	}
	roots, err := s.authority.Distribute(t.Namespace)
	if err != nil {
		return err
	}
	return s.Cluster.ApplyObjects(ctx, roots...)
}
