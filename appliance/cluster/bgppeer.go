package cluster

import (
	"errors"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"weft.network/weft/appliance/model"
)

// bgpPeerKind is BGPPeer, a neighbour of the nodes' BGP speakers.
var bgpPeerKind = newCustomKind("bgppeers", "BGPPeer", resolveBGPPeer,
	func(o *objects) *collection[string, model.BGPPeer] { return &o.bgpPeers })

func resolveBGPPeer(meta *metav1.ObjectMeta, spec *model.BGPPeerSpec) (*model.BGPPeer, []fieldError) {
	peer, errs := spec.Resolve(meta.Name)
	bad := specErrors(errs)
	if spec.PasswordFile != "" {
		bad = append(bad, fieldError{"spec.passwordFile", errors.New("only weft.yaml may name a file of the node; use passwordSecretRef")})
	}
	return peer, bad
}

// specErrors puts the errors of a spec where it stands in its object.
func specErrors(errs []model.FieldError) (out []fieldError) {
	for _, e := range errs {
		out = append(out, fieldError{"spec." + e.Field, e.Err})
	}
	return out
}
