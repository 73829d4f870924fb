package mesh

import (
	"fmt"
	"net/netip"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/yaml"
)

// Namespace is Istio's own, Address where its proxies ask for their configuration.
const (
	Namespace = "istio-system"
	Address   = "istiod.istio-system.svc"
)

// istiod is the name of its objects and, as label app, how policy-sync knows its pods.
const istiod = "istiod"

// IstiodOptions says what istiod to run.
type IstiodOptions struct {
	// TrustDomain is SPIRE's: istiod writes it into what a proxy accepts as its peer's name.
	TrustDomain string
	// Image is the reference of an image made from IstiodImage.
	Image string
	// Authority signs the certificate of istiod's port.
	Authority *Authority
	// Validation, where it is set, is the address of a machine at which the API server reaches NodePorts: istiod then validates what is
	// written of Istio's kinds, as it does where its chart installs it, and what it refuses, or cannot be asked about, is not written.
	Validation netip.Addr
}

// IstiodObjects returns everything that istiod is and needs in a cluster that has Istio's custom resource definitions.
func IstiodObjects(o IstiodOptions) ([]*unstructured.Unstructured, error) {
	mesh, err := o.meshConfig()
	if err != nil {
		return nil, err
	}
	cert, key, err := o.Authority.serving(o.Validation, Address, Address+".cluster.local")
	if err != nil {
		return nil, err
	}
	var list objects
	list.add(&corev1.Namespace{TypeMeta: typeMeta("v1", "Namespace"), ObjectMeta: metav1.ObjectMeta{Name: Namespace}})
	list.add(&corev1.ServiceAccount{TypeMeta: typeMeta("v1", "ServiceAccount"), ObjectMeta: named()})
	for _, object := range rights() {
		list.add(object)
	}
	config := &corev1.ConfigMap{TypeMeta: typeMeta("v1", "ConfigMap"), ObjectMeta: named(), Data: map[string]string{"mesh": mesh}}
	config.Name = "istio" // the name that istiod reads
	list.add(config)
	secret := &corev1.Secret{TypeMeta: typeMeta("v1", "Secret"), ObjectMeta: named(), Type: corev1.SecretTypeTLS}
	secret.Name = istiodSecret
	secret.Data = map[string][]byte{corev1.TLSCertKey: cert, corev1.TLSPrivateKeyKey: key, "ca.crt": o.Authority.Root()}
	list.add(secret)
	list.add(service())
	if o.Validation.IsValid() {
		for _, object := range o.validation() {
			list.add(object)
		}
	}
	list.add(o.deployment())
	return list.out, list.err
}

const istiodSecret = "istiod-tls"

func named() metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: Namespace, Name: istiod, Labels: map[string]string{"app": istiod}}
}

// meshConfig is the mesh's configuration, where it differs from Istio's defaults. doc.go says why.
func (o IstiodOptions) meshConfig() (string, error) {
	config := map[string]any{
		"trustDomain":           o.TrustDomain,
		"rootNamespace":         Namespace,
		"accessLogFile":         "/dev/stdout",
		"enableTracing":         false,
		"enablePrometheusMerge": false,
		"ingressControllerMode": "OFF",
		"defaultProviders":      map[string]any{"metrics": []any{}},
		"defaultConfig":         map[string]any{"discoveryAddress": Address + ":15012"},
	}
	text, err := yaml.Marshal(config)
	if err != nil {
		return "", fmt.Errorf("mesh: configuration: %w", err)
	}
	return string(text), nil
}

func service() *corev1.Service {
	port := func(name string, number, target int32) corev1.ServicePort {
		return corev1.ServicePort{Name: name, Port: number, TargetPort: intstr.FromInt32(target), Protocol: corev1.ProtocolTCP}
	}
	return &corev1.Service{
		TypeMeta: typeMeta("v1", "Service"), ObjectMeta: named(),
		Spec: corev1.ServiceSpec{
			Selector: map[string]string{"app": istiod},
			Ports:    []corev1.ServicePort{port("grpc-xds", 15010, 15010), port("https-dns", 15012, 15012), port("http-monitoring", 15014, 15014)},
		},
	}
}

// discoveryArgs start istiod. Its webhook server only validates, where it is asked to: pods come injected (Sidecar).
func (o IstiodOptions) discoveryArgs() []string {
	webhooks := ""
	if o.Validation.IsValid() {
		webhooks = fmt.Sprintf(":%d", webhookPort)
	}
	return []string{"discovery", "--monitoringAddr=:15014", "--domain=cluster.local", "--httpsAddr=" + webhooks, "--log_output_level=default:info"}
}

// discoveryEnv is istiod's environment, where it differs from its defaults. doc.go says why.
func discoveryEnv() []corev1.EnvVar {
	return []corev1.EnvVar{
		{Name: "POD_NAME", ValueFrom: field("metadata.name")},
		{Name: "POD_NAMESPACE", ValueFrom: field("metadata.namespace")},
		{Name: "SERVICE_ACCOUNT", ValueFrom: field("spec.serviceAccountName")},
		{Name: "CLUSTER_ID", Value: clusterID},
		{Name: "REVISION", Value: "default"},
		// What only Istio's own build of Envoy understands.
		{Name: "PILOT_ENABLE_ALPN_FILTER", Value: "false"},
		{Name: "PILOT_ENABLE_METADATA_EXCHANGE", Value: "false"},
		// SPIRE is the authority.
		{Name: "ENABLE_CA_SERVER", Value: "false"},
		// What no one uses here, and would cost rights in the cluster.
		{Name: "PILOT_ENABLE_GATEWAY_API", Value: "false"},
		{Name: "PILOT_ENABLE_IP_AUTOALLOCATE", Value: "false"},
		{Name: "PILOT_ENABLE_WORKLOAD_ENTRY_AUTOREGISTRATION", Value: "false"},
		{Name: "ENABLE_LEADER_ELECTION", Value: "false"},
		{Name: "INJECT_ENABLED", Value: "false"},
		{Name: "INJECTION_WEBHOOK_CONFIG_NAME", Value: ""},
		{Name: "VALIDATION_WEBHOOK_CONFIG_NAME", Value: ""},
	}
}

// clusterID has to be the same in istiod and in its proxies.
const clusterID = "Kubernetes"

func field(path string) *corev1.EnvVarSource {
	return &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: path}}
}

func (o IstiodOptions) deployment() *appsv1.Deployment {
	labels := map[string]string{"app": istiod, "istio.io/dataplane-mode": "none"}
	container := corev1.Container{
		Name: "discovery", Image: o.Image, Args: o.discoveryArgs(), Env: discoveryEnv(), SecurityContext: restricted(),
		Ports: []corev1.ContainerPort{
			{Name: "grpc-xds", ContainerPort: 15010}, {Name: "tls-xds", ContainerPort: 15012}, {Name: "http-monitoring", ContainerPort: 15014},
		},
		ReadinessProbe: probe("/ready", 8080),
		VolumeMounts:   []corev1.VolumeMount{{Name: "tls", MountPath: "/var/run/secrets/istiod/tls", ReadOnly: true}},
	}
	return &appsv1.Deployment{
		TypeMeta: typeMeta("apps/v1", "Deployment"), ObjectMeta: named(),
		Spec: appsv1.DeploymentSpec{
			Replicas: new(int32(1)), Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": istiod}},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: labels},
				Spec: corev1.PodSpec{
					ServiceAccountName: istiod, Containers: []corev1.Container{container},
					// Proxies on a node whose proof is lost still have to learn that they are denied.
					Tolerations: []corev1.Toleration{{Key: "trust.keelson.io/untrusted", Operator: corev1.TolerationOpExists}},
					Volumes: []corev1.Volume{{Name: "tls", VolumeSource: corev1.VolumeSource{
						Secret: &corev1.SecretVolumeSource{SecretName: istiodSecret},
					}}},
				},
			},
		},
	}
}

func probe(path string, port int32) *corev1.Probe {
	return &corev1.Probe{
		ProbeHandler:  corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: path, Port: intstr.FromInt32(port)}},
		PeriodSeconds: 1, TimeoutSeconds: 3, FailureThreshold: 60,
	}
}
