%% Refuses what a page of another site makes a browser send to the management: a browser that was asked for the login
%% once (by its own prompt, not by the management's page) adds it to a form of any page.
-module(foreign_pages).
-export([execute/2]).

-define(REASON,
    <<"A page of another site may not use RabbitMQ's management: open it by its address in a tab of its own; a proxy"
      " in front must pass on the browser's Host.\n">>).

%% A middleware of cowboy, before those of RabbitMQ: see advanced.config.
execute(Req, Env) ->
    case foreign_origin(Req) orelse foreign_site(Req) of
        false -> {ok, Req, Env};
        true -> {stop, cowboy_req:reply(403, #{<<"content-type">> => <<"text/plain">>}, ?REASON, Req)}
    end.

foreign_origin(Req) ->
    Host = string:lowercase(cowboy_req:header(<<"host">>, Req, <<>>)),
    Origin = cowboy_req:header(<<"origin">>, Req),
    not lists:member(Origin, [undefined, <<"http://", Host/binary>>, <<"https://", Host/binary>>]).

foreign_site(Req) ->
    Site = cowboy_req:header(<<"sec-fetch-site">>, Req, <<"none">>),
    not lists:member(Site, [<<"none">>, <<"same-origin">>]) andalso not is_visit(Req).

%% The user follows a link: the answer fills a tab, and the other page can't read it.
is_visit(Req) ->
    lists:member(cowboy_req:method(Req), [<<"GET">>, <<"HEAD">>]) andalso
        cowboy_req:header(<<"sec-fetch-mode">>, Req) =:= <<"navigate">> andalso
        cowboy_req:header(<<"sec-fetch-dest">>, Req) =:= <<"document">>.
