package mesh

import (
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Sidecar puts Istio's proxy into pods, as Istio's own injector would, with SPIRE as the source of its certificates. The proxy
// holds no capability and no container changes the pod's network: the node's CNI plugin has done that (Plugin), and the init
// container istio-validation keeps the pod from starting where it has not.
type Sidecar struct {
	// TrustDomain is SPIRE's.
	TrustDomain string
	// Image is the reference of an image made from ProxyImage. An attestor that asks for signed images asks it of this one too:
	// it is the proxy, not the application, that SPIRE's agent attests.
	Image string
	// Socket is the name of the SPIRE agent's socket, in the folder that the SPIFFE CSI driver (CSIDriver) mounts.
	Socket string
	// Drain is how long a connection may live on under rules that have changed since it was opened: the next request on it is
	// still judged by the old ones, and when this time is over it is cut. Whole seconds; zero is one. Istio's default is 45.
	Drain time.Duration
}

// Names that Istio knows its parts by: the CNI plugin looks for the container and the annotation, istiod for the label.
const (
	proxyContainer      = "istio-proxy"
	validationContainer = "istio-validation"
	statusAnnotation    = "sidecar.istio.io/status"
	tlsModeLabel        = "security.istio.io/tlsMode"
	canonicalNameLabel  = "service.istio.io/canonical-name"
)

// CSIDriver is the name of the SPIFFE CSI driver: the one way to the agent's socket that PodSecurity "restricted" admits.
const CSIDriver = "csi.spiffe.io"

// istioSocket is the name that pilot-agent gives its own SDS socket.
const istioSocket = "socket"

// ProxyUID is the user that the proxy runs as, and whose own connections are not led back to it.
const ProxyUID = 1337

// Inject adds the proxy to a pod. The ports of the pod's containers have to be named (http-…, tcp-…) or its Services' ports
// have to say their protocol: a proxy that takes HTTP for TCP decides by principal and port alone (doc.go).
func (s Sidecar) Inject(pod *corev1.PodTemplateSpec) error {
	if s.TrustDomain == "" || s.Image == "" || s.Socket == "" || path.Base(s.Socket) != s.Socket {
		return errors.New("mesh: a sidecar needs a trust domain, an image and the name of SPIRE's socket, without a folder")
	}
	if s.Socket == istioSocket {
		return fmt.Errorf("mesh: SPIRE's socket has to have another name than %s: with that one pilot-agent falls back to istiod's certificates", istioSocket)
	}
	for _, c := range pod.Spec.Containers {
		if c.Name == proxyContainer {
			return fmt.Errorf("mesh: the pod has a container %s already", proxyContainer)
		}
	}
	proxy, err := s.proxy(pod)
	if err != nil {
		return err
	}
	annotate(&pod.ObjectMeta)
	pod.Spec.InitContainers = append([]corev1.Container{s.validation()}, pod.Spec.InitContainers...)
	pod.Spec.Containers = append(pod.Spec.Containers, proxy)
	pod.Spec.Volumes = append(pod.Spec.Volumes, s.volumes()...)
	return nil
}

func annotate(meta *metav1.ObjectMeta) {
	if meta.Labels == nil {
		meta.Labels = map[string]string{}
	}
	if meta.Annotations == nil {
		meta.Annotations = map[string]string{}
	}
	meta.Labels[tlsModeLabel] = "istio" // callers' proxies then speak mutual TLS to this pod
	if app := meta.Labels["app"]; app != "" {
		meta.Labels[canonicalNameLabel] = app
	}
	meta.Annotations[statusAnnotation] = "{}"
}

// validation ends well only when the pod's connections are led to the proxy: a pod that started while the plugin was absent
// would talk in plain text and enforce nothing.
func (s Sidecar) validation() corev1.Container {
	return corev1.Container{
		Name: validationContainer, Image: s.Image, SecurityContext: restricted(),
		Args: []string{"istio-iptables", "--run-validation", "--skip-rule-apply", "-p", "15001", "-z", "15006", "-u", fmt.Sprint(ProxyUID)},
	}
}

func (s Sidecar) proxy(pod *corev1.PodTemplateSpec) (corev1.Container, error) {
	env, err := s.env(pod)
	if err != nil {
		return corev1.Container{}, err
	}
	mount := func(name, at string, readOnly bool) corev1.VolumeMount {
		return corev1.VolumeMount{Name: name, MountPath: at, ReadOnly: readOnly}
	}
	return corev1.Container{
		Name: proxyContainer, Image: s.Image, SecurityContext: restricted(), Env: env,
		Args: []string{
			"proxy", "sidecar", "--domain", "$(POD_NAMESPACE).svc.cluster.local",
			"--proxyLogLevel=warning", "--proxyComponentLogLevel=misc:error", "--log_output_level=default:info",
		},
		Ports:          []corev1.ContainerPort{{Name: "http-envoy-prom", ContainerPort: 15090}},
		ReadinessProbe: probe("/healthz/ready", 15021),
		VolumeMounts: []corev1.VolumeMount{
			mount("workload-socket", "/var/run/secrets/workload-spiffe-uds", true),
			mount("credential-socket", "/var/run/secrets/credential-uds", false),
			mount("istiod-ca-cert", "/var/run/secrets/istio", true),
			mount("istio-token", "/var/run/secrets/tokens", true),
			mount("istio-podinfo", "/etc/istio/pod", true),
			mount("istio-envoy", "/etc/istio/proxy", false),
			mount("istio-data", "/var/lib/istio/data", false),
		},
	}, nil
}

// env is pilot-agent's environment. doc.go says why.
func (s Sidecar) env(pod *corev1.PodTemplateSpec) ([]corev1.EnvVar, error) {
	ports := []corev1.ContainerPort{} // "[]", not "null", where there is none
	var apps []string
	for _, c := range pod.Spec.Containers {
		ports, apps = append(ports, c.Ports...), append(apps, c.Name)
	}
	podPorts, err := json.Marshal(ports)
	if err != nil {
		return nil, fmt.Errorf("mesh: ports: %w", err)
	}
	config, err := json.Marshal(map[string]any{
		"discoveryAddress": Address + ":15012", "proxyBootstrapTemplatePath": templatePath, "concurrency": 1,
		"drainDuration": fmt.Sprintf("%ds", s.drain()),
	})
	if err != nil {
		return nil, fmt.Errorf("mesh: proxy configuration: %w", err)
	}
	return []corev1.EnvVar{
		{Name: "POD_NAME", ValueFrom: field("metadata.name")},
		{Name: "POD_NAMESPACE", ValueFrom: field("metadata.namespace")},
		{Name: "INSTANCE_IP", ValueFrom: field("status.podIP")},
		{Name: "SERVICE_ACCOUNT", ValueFrom: field("spec.serviceAccountName")},
		{Name: "HOST_IP", ValueFrom: field("status.hostIP")},
		{Name: "PROXY_CONFIG", Value: string(config)},
		{Name: "CA_ADDR", Value: Address + ":15012"},
		{Name: "TRUST_DOMAIN", Value: s.TrustDomain},
		{Name: "ISTIO_META_CLUSTER_ID", Value: clusterID},
		{Name: "ISTIO_META_MESH_ID", Value: s.TrustDomain},
		{Name: "ISTIO_META_NODE_NAME", ValueFrom: field("spec.nodeName")},
		{Name: "ISTIO_META_INTERCEPTION_MODE", Value: "REDIRECT"},
		{Name: "ISTIO_META_APP_CONTAINERS", Value: strings.Join(apps, ",")},
		{Name: "ISTIO_META_POD_PORTS", Value: string(podPorts)},
		// The name of SPIRE's own socket: with any name but Istio's default, pilot-agent starts only where that socket answers.
		// With the default it would quietly serve certificates itself, from istiod, where it finds none.
		{Name: "WORKLOAD_IDENTITY_SOCKET_FILE", Value: s.Socket},
	}, nil
}

func (s Sidecar) drain() int64 { return max(1, int64(s.Drain/time.Second)) }

func (Sidecar) volumes() []corev1.Volume {
	empty := corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}
	expiry := int64(43200)
	return []corev1.Volume{
		// The folder, not the socket in it: an agent that starts again makes a new socket.
		{Name: "workload-socket", VolumeSource: corev1.VolumeSource{CSI: &corev1.CSIVolumeSource{Driver: CSIDriver, ReadOnly: new(true)}}},
		{Name: "credential-socket", VolumeSource: empty},
		{Name: "istiod-ca-cert", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{
			LocalObjectReference: corev1.LocalObjectReference{Name: rootConfigMap},
		}}},
		{Name: "istio-token", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{{
			ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Audience: "istio-ca", ExpirationSeconds: &expiry, Path: "istio-token"},
		}}}}},
		// Labels alone: what a pod's annotations could tell the agent (another istiod, another bootstrap) is not for the pod's
		// author to say.
		{Name: "istio-podinfo", VolumeSource: corev1.VolumeSource{DownwardAPI: &corev1.DownwardAPIVolumeSource{Items: []corev1.DownwardAPIVolumeFile{
			{Path: "labels", FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.labels"}},
		}}}},
		{Name: "istio-envoy", VolumeSource: empty},
		{Name: "istio-data", VolumeSource: empty},
	}
}

// restricted is the security context of every container here: no capability, no way to one, no writing to the image.
func restricted() *corev1.SecurityContext {
	return &corev1.SecurityContext{
		AllowPrivilegeEscalation: new(false), ReadOnlyRootFilesystem: new(true), RunAsNonRoot: new(true),
		RunAsUser: new(int64(ProxyUID)), RunAsGroup: new(int64(ProxyUID)),
		Capabilities:   &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
		SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
	}
}
