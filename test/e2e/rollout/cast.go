package rollout

import (
	"fmt"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/test/e2e/stage"
)

const (
	namespace = "books"
	readiness = 9001
	// preStop is how long a pod that is deleted goes on before it is told to end.
	preStop = 6
)

// team: PodSecurity is off, since a debug container as `kubectl debug` makes it has no security context.
var team = stage.Team{Namespace: namespace, Mode: v1alpha1.ModeEnforce, Accounts: []string{"shelf", "reader"}, PodSecurity: "privileged"}

const policies = `
apiVersion: trust.keelson.io/v1alpha1
kind: TrustPolicy
metadata: {name: shelf, namespace: books}
spec:
  workloads: {serviceAccount: shelf}
  require: {node: {references: [prod]}, image: {verifiedBy: [release-key]}}
  ingress: [{from: [{serviceAccount: reader}], ports: [9000]}]
---
apiVersion: trust.keelson.io/v1alpha1
kind: TrustPolicy
metadata: {name: reader, namespace: books}
spec:
  workloads: {serviceAccount: reader}
  require: {node: {references: [prod]}, image: {verifiedBy: [release-key]}}
`

var (
	// reader tries and holds, keeper is what is done to a single pod.
	reader = stage.Pod{Namespace: namespace, Name: "reader", Account: "reader", Node: "fra-2"}
	keeper = stage.Pod{Namespace: namespace, Name: "keeper", Account: "shelf"}
	// Two that are not enrolled show what the computer's own stalls look like: the one tries the other's Service.
	walker   = stage.Pod{Namespace: stage.Passer.Namespace, Name: "walker", Account: stage.Passer.Account, Node: "fra-2"}
	milepost = stage.Pod{Namespace: stage.Passer.Namespace, Name: "milepost", Account: stage.Passer.Account, Node: "par-1", Labels: map[string]string{"app": "milepost"}}
	// Others that come and live beside the update.
	first    = stage.Pod{Namespace: namespace, Name: "first", Account: "reader"}
	beside   = stage.Pod{Namespace: namespace, Name: "beside", Account: "reader"}
	crashing = stage.Pod{Namespace: namespace, Name: "crashing", Account: "shelf"}
)

const milepostService = `
apiVersion: v1
kind: Service
metadata: {name: milepost, namespace: street}
spec:
  selector: {app: milepost}
  ports: [{name: tcp-echo, port: 9000}]
`

const job = "count"

// service is the shelf's, as its clients name it.
var service = fmt.Sprintf("tcp:shelf.%s:%d", namespace, stage.TCPPort)

// container is one of the workload's signed image.
func container(s *stage.Stage, name string, args ...string) corev1.Container {
	return corev1.Container{Name: name, Image: s.Image(stage.Workload).Reference(), Args: args}
}

func server(s *stage.Stage) corev1.Container {
	c := container(s, "main", "serve", "-tcp", fmt.Sprintf(":%d", stage.TCPPort))
	c.Ports = []corev1.ContainerPort{{Name: "tcp-echo", ContainerPort: stage.TCPPort}}
	return c
}

// waits is a container that calls the shelf until it is served.
func waits(s *stage.Stage, name string) corev1.Container {
	return container(s, name, "until", "-for", "2m", service)
}

// shelf is a Deployment whose pods end as they should, and are ready when their callers are let in.
func shelf(s *stage.Stage, replicas int32) *appsv1.Deployment {
	c := server(s)
	c.Args = append(c.Args, "-ready", fmt.Sprintf(":%d", readiness), "-when", "/pod/labels", "-text", v1alpha1.PodAttestedLabel+`="true"`, "-after", "6s")
	c.VolumeMounts = []corev1.VolumeMount{{Name: "pod", MountPath: "/pod", ReadOnly: true}}
	c.ReadinessProbe = &corev1.Probe{
		ProbeHandler:        corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt32(readiness)}},
		InitialDelaySeconds: 3, PeriodSeconds: 2, TimeoutSeconds: 5, FailureThreshold: 5,
	}
	c.Lifecycle = &corev1.Lifecycle{PreStop: &corev1.LifecycleHandler{Sleep: &corev1.SleepAction{Seconds: preStop}}}
	labels, grace := map[string]string{"app": "shelf"}, int64(20)
	none, half := intstr.FromInt32(0), intstr.FromString("50%")
	return &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "shelf"},
		Spec: appsv1.DeploymentSpec{
			Replicas: &replicas, Selector: &metav1.LabelSelector{MatchLabels: labels},
			Strategy: appsv1.DeploymentStrategy{Type: appsv1.RollingUpdateDeploymentStrategyType, RollingUpdate: &appsv1.RollingUpdateDeployment{MaxUnavailable: &none, MaxSurge: &half}},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: labels},
				Spec: corev1.PodSpec{
					ServiceAccountName: "shelf", TerminationGracePeriodSeconds: &grace, Containers: []corev1.Container{c},
					Volumes: []corev1.Volume{{Name: "pod", VolumeSource: corev1.VolumeSource{DownwardAPI: &corev1.DownwardAPIVolumeSource{
						Items: []corev1.DownwardAPIVolumeFile{{Path: "labels", FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.labels"}}},
					}}}},
				},
			},
		},
	}
}

// object is a pod of the team with some containers. Its label app is its own, so that no Service leads to it.
func object(p stage.Pod, init []corev1.Container, containers ...corev1.Container) *corev1.Pod {
	grace := int64(0)
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: p.Namespace, Name: p.Name, Labels: map[string]string{"app": p.Name}},
		Spec: corev1.PodSpec{
			ServiceAccountName: p.Account, TerminationGracePeriodSeconds: &grace, InitContainers: init, Containers: containers,
		},
	}
}

// keeperPod asks for a share of a processor, so that it can be given another.
func keeperPod(s *stage.Stage) *corev1.Pod {
	c := server(s)
	c.Resources = corev1.ResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("10m")}}
	return object(keeper, nil, c)
}

// sidecarPod has a native sidecar, and after it an init container that calls a peer.
func sidecarPod(s *stage.Stage) *corev1.Pod {
	always := corev1.ContainerRestartPolicyAlways
	sidecar := server(s)
	sidecar.Name, sidecar.RestartPolicy = "sidecar", &always
	return object(beside, []corev1.Container{sidecar, waits(s, "calls")}, container(s, "main", "pause"))
}

// crashingPod has a second container that ends with an error again and again.
func crashingPod(s *stage.Stage) *corev1.Pod {
	return object(crashing, nil, server(s), container(s, "second", "until", "-for", "1s", "tcp:nobody.invalid:1"))
}

func countJob(s *stage.Stage) *batchv1.Job {
	once := int32(0)
	return &batchv1.Job{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: job},
		Spec: batchv1.JobSpec{
			BackoffLimit: &once,
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": job}},
				Spec:       corev1.PodSpec{ServiceAccountName: "reader", RestartPolicy: corev1.RestartPolicyNever, Containers: []corev1.Container{waits(s, "main")}},
			},
		},
	}
}
