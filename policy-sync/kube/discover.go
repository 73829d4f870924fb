package kube

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/discovery"

	"github.com/keelson-project/keelson/policy-sync/snapshot"
)

// Found says which optional APIs a cluster serves completely.
type Found struct {
	Calico, Istio bool
	// CalicoDefinitions is true where Calico's API is served without Calico's API server (snapshot.Config.CalicoDefinitions).
	CalicoDefinitions bool
	// Absent are the optional kinds that are not served, as "<plural>.<group>" (snapshot.Config.Absent).
	Absent []string
}

// Discover asks the API server which of the optional APIs it serves. One that is there in part is an error: a kind that
// cannot be read cannot be watched for what would widen access.
func Discover(d discovery.DiscoveryInterface) (Found, error) {
	calico, calicoErr := complete(d, snapshot.Kinds(snapshot.Config{Calico: true}))
	istio, istioErr := complete(d, snapshot.Kinds(snapshot.Config{Istio: true}))
	absent, absentErr := optional(d, snapshot.Kinds(snapshot.Config{Calico: true, Istio: true}))
	definitions, definitionsErr := false, error(nil)
	if calico {
		definitions, definitionsErr = definitionsAlone(d)
	}
	return Found{Calico: calico, Istio: istio, CalicoDefinitions: definitions, Absent: absent}, errors.Join(calicoErr, istioErr, absentErr, definitionsErr)
}

// behindCalico is the group in which Calico's API server keeps what it serves as projectcalico.org/v3.
const behindCalico = "crd.projectcalico.org/v1"

// definitionsAlone tells whether projectcalico.org/v3 is served with nothing behind it: Calico's API server would keep its policies in
// a group of their own, which is then served too.
func definitionsAlone(d discovery.DiscoveryInterface) (bool, error) {
	list, err := d.ServerResourcesForGroupVersion(behindCalico)
	if err != nil && !apierrors.IsNotFound(err) {
		return false, fmt.Errorf("kube: discover %s: %w", behindCalico, err)
	}
	return !served(list, "networkpolicies"), nil
}

// optional lists the optional kinds that are not served.
func optional(d discovery.DiscoveryInterface, kinds []snapshot.Kind) ([]string, error) {
	var out []string
	for _, k := range kinds {
		if !k.Optional {
			continue
		}
		list, err := d.ServerResourcesForGroupVersion(k.GroupVersion().String())
		if err != nil && !apierrors.IsNotFound(err) {
			return nil, fmt.Errorf("kube: discover %s: %w", k.GroupVersion(), err)
		}
		if !served(list, k.Resource) {
			out = append(out, k.Resource+"."+k.Group)
		}
	}
	return out, nil
}

// complete tells whether all the kinds are served that are not optional. None served is a plain no.
func complete(d discovery.DiscoveryInterface, kinds []snapshot.Kind) (bool, error) {
	var there, missing []string
	lists := map[string]*metav1.APIResourceList{}
	for _, k := range kinds {
		if k.Optional {
			continue
		}
		gv := k.GroupVersion().String()
		if _, asked := lists[gv]; !asked {
			list, err := d.ServerResourcesForGroupVersion(gv)
			if err != nil && !apierrors.IsNotFound(err) {
				return false, fmt.Errorf("kube: discover %s: %w", gv, err)
			}
			lists[gv] = list
		}
		name := k.Resource + "." + k.Group
		if served(lists[gv], k.Resource) {
			there = append(there, name)
			continue
		}
		missing = append(missing, name)
	}
	if len(there) > 0 && len(missing) > 0 {
		return false, fmt.Errorf("kube: the API server serves %s but not %s; install the missing definitions",
			strings.Join(there, ", "), strings.Join(missing, ", "))
	}
	return len(missing) == 0, nil
}

func served(list *metav1.APIResourceList, resource string) bool {
	return list != nil && slices.ContainsFunc(list.APIResources, func(r metav1.APIResource) bool { return r.Name == resource })
}
