package cluster

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/restmapper"

	"github.com/keelson-project/keelson/test/parts"
)

// calicoService is the name under which kube-apiserver reaches Calico's API server.
const calicoService = "calico-api.calico-system.svc"

// CalicoAPIServerUser is the user as whom Calico's API server writes crd.projectcalico.org, as in a real installation.
const CalicoAPIServerUser = "system:serviceaccount:calico-system:calico-apiserver"

// startCalico installs Calico's own custom resources, starts its API server on them and registers projectcalico.org/v3. The
// service is of type ExternalName with the name localhost, since Endpoints may not hold loopback addresses and nothing of a
// test should listen on others.
func (c *Cluster) startCalico(ctx context.Context, path string) error {
	begun := time.Now()
	dir, err := parts.ModuleDir(ctx, "calico", "github.com/projectcalico/calico")
	if err != nil {
		return err
	}
	if err := c.ApplyDir(ctx, filepath.Join(dir, "libcalico-go", "config", "crd")); err != nil {
		return err
	}
	cert, key, err := c.ca.server(calicoService, "localhost", "127.0.0.1")
	if err != nil {
		return err
	}
	if err := writePair(c.dir, "calico-apiserver", cert, key); err != nil {
		return err
	}
	port, err := FreePort()
	if err != nil {
		return err
	}
	if err := c.Apply(ctx, fmt.Appendf(nil, calicoObjects, port, base64.StdEncoding.EncodeToString(c.ca.pem()))); err != nil {
		return err
	}
	kubeconfig, err := c.KubeconfigFor(CalicoAPIServerUser, "system:masters")
	if err != nil {
		return err
	}
	p, err := c.group.Start(Command{Name: "calico-apiserver", Path: path, Args: []string{
		"--bind-address=127.0.0.1", fmt.Sprintf("--secure-port=%d", port),
		"--tls-cert-file=" + c.path("calico-apiserver.crt"), "--tls-private-key-file=" + c.path("calico-apiserver.key"),
		"--kubeconfig=" + kubeconfig, "--authentication-kubeconfig=" + kubeconfig, "--authorization-kubeconfig=" + kubeconfig,
	}, Env: []string{"KUBECONFIG=" + kubeconfig, "DATASTORE_TYPE=kubernetes"}})
	if err != nil {
		return err
	}
	client, err := dynamic.NewForConfig(c.RESTConfig())
	if err != nil {
		return fmt.Errorf("cluster: %w", err)
	}
	disco, err := discovery.NewDiscoveryClientForConfig(c.RESTConfig())
	if err != nil {
		return fmt.Errorf("cluster: %w", err)
	}
	tiers := client.Resource(schema.GroupVersionResource{Group: "projectcalico.org", Version: "v3", Resource: "tiers"})
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	err = p.Until(ctx, func(ctx context.Context) error {
		if _, err := tiers.Get(ctx, "default", metav1.GetOptions{}); err != nil {
			return err
		}
		return discovered(disco)
	})
	if err != nil {
		return err
	}
	say(c.opts.Log, "projectcalico.org/v3 is served by Calico's API server after %.1f s", time.Since(begun).Seconds())
	return nil
}

// discovered tells whether clients that ask what there is are told of projectcalico.org/v3. kube-apiserver's answer to that is
// some time behind what it serves.
func discovered(disco *discovery.DiscoveryClient) error {
	groups, err := restmapper.GetAPIGroupResources(disco)
	if err != nil {
		return fmt.Errorf("cluster: discovery: %w", err)
	}
	for _, g := range groups {
		if g.Group.Name == "projectcalico.org" && len(g.VersionedResources["v3"]) > 0 {
			return nil
		}
	}
	return errors.New("cluster: discovery does not list projectcalico.org/v3 yet")
}

// calicoObjects are what Calico's installer makes: without them its API server is not reached, or refuses policies because the
// datastore is not ready or the default tier is missing.
const calicoObjects = `
apiVersion: v1
kind: Namespace
metadata: {name: calico-system}
---
apiVersion: v1
kind: Service
metadata: {name: calico-api, namespace: calico-system}
spec: {type: ExternalName, externalName: localhost}
---
apiVersion: crd.projectcalico.org/v1
kind: ClusterInformation
metadata: {name: default}
spec: {datastoreReady: true, clusterGUID: "00000000000000000000000000000001", clusterType: k8s, calicoVersion: v3.30.1}
---
apiVersion: crd.projectcalico.org/v1
kind: Tier
metadata: {name: default}
spec: {order: 1000000, defaultAction: Deny}
---
apiVersion: apiregistration.k8s.io/v1
kind: APIService
metadata: {name: v3.projectcalico.org}
spec:
  group: projectcalico.org
  version: v3
  groupPriorityMinimum: 1500
  versionPriority: 200
  service: {name: calico-api, namespace: calico-system, port: %d}
  caBundle: %s
`
