{{ config(materialized="incremental", unique_key="id") }}
select * from {{ ref("pg_raw_orders") }}
where ordered_on = '{{ var("day") }}'
