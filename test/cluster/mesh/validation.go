package mesh

import (
	"fmt"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// webhookPort is where istiod serves its webhooks, nodePort where every node leads to it: the API server is no pod, and reaches no
// address of a Service.
const (
	webhookPort = 15017
	nodePort    = 30017
)

// validation has the API server ask istiod about every object of Istio's kinds, as the webhook istiod-default-validator of Istio's base
// chart does once istiod is ready.
func (o IstiodOptions) validation() []runtime.Object {
	reach := &corev1.Service{
		TypeMeta: typeMeta("v1", "Service"), ObjectMeta: named(),
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeNodePort, Selector: map[string]string{"app": istiod},
			Ports: []corev1.ServicePort{{Name: "https-webhook", Port: 443, TargetPort: intstr.FromInt32(webhookPort), NodePort: nodePort, Protocol: corev1.ProtocolTCP}},
		},
	}
	reach.Name = "istiod-validation"
	fail, none, url := admissionv1.Fail, admissionv1.SideEffectClassNone, fmt.Sprintf("https://%s:%d/validate", o.Validation, nodePort)
	return []runtime.Object{reach, &admissionv1.ValidatingWebhookConfiguration{
		TypeMeta:   typeMeta(admissionv1.SchemeGroupVersion.String(), "ValidatingWebhookConfiguration"),
		ObjectMeta: metav1.ObjectMeta{Name: "istiod-default-validator", Labels: map[string]string{"app": istiod}},
		Webhooks: []admissionv1.ValidatingWebhook{{
			Name: "validation.istio.io", FailurePolicy: &fail, SideEffects: &none, AdmissionReviewVersions: []string{"v1"},
			ClientConfig: admissionv1.WebhookClientConfig{URL: &url, CABundle: o.Authority.Root()},
			Rules: []admissionv1.RuleWithOperations{{
				Operations: []admissionv1.OperationType{admissionv1.Create, admissionv1.Update},
				Rule: admissionv1.Rule{
					APIGroups:   []string{"security.istio.io", "networking.istio.io", "telemetry.istio.io", "extensions.istio.io"},
					APIVersions: []string{"*"}, Resources: []string{"*"},
				},
			}},
		}},
	}}
}
